"""How well pictures fit their prompts: CLIP score, and for Scenes the exact shares.

Shapes: B batch, S side of a picture in pixels, K features.
"""

import json

import numpy as np
import safetensors
import torch
import torch.nn.functional as F

from itit import storage
from itit.data import scenes

try:
    import transformers
except ImportError:
    transformers = None

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # arXiv:2103.00020's, by default


def read_index(folder):
    """[(prompt, path of its picture)] of a folder that tools.generate wrote. Raises ValueError, one line."""
    path = storage.join(folder, "index.jsonl")
    if not storage.exists(path):
        raise ValueError(f"{path}: not there; give a folder that tools.generate has finished")
    lines = [json.loads(line) for line in storage.read_bytes(path).decode().splitlines()]
    return [(line["prompt"], storage.join(folder, line["file"])) for line in lines]


class Clip:
    """A CLIP of transformers from a folder on disk; nothing is fetched, and no pickle opened.

    Attributes: `image_size`, S; `stamp`, JSON values that tell one CLIP from another.

    Raises ValueError, one line: the library is absent, the folder holds no CLIP as safetensors.
    """

    def __init__(self, folder, backend):
        if transformers is None:
            raise ValueError("--clip: needs transformers: pip install transformers")
        weights = storage.join(folder, "model.safetensors")
        if not storage.exists(weights):
            raise ValueError(f"--clip={folder}: no model.safetensors in it")
        try:
            model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(f"--clip={folder}: not a CLIP with its tokenizer: {str(error).splitlines()[0]}") from None
        self._model, self._backend = backend.adopt(model.eval().requires_grad_(False)), backend
        self.image_size = model.config.vision_config.image_size
        self._length = model.config.text_config.max_position_embeddings
        self._mean, self._std = _normalisation(storage.join(folder, "preprocessor_config.json"))
        self.stamp = {"clip_sha256": storage.sha256(weights), "image_size": self.image_size}

    def __call__(self, pictures, texts):
        """Cosines of pictures, uint8 [B, S, S, 3], and their texts: float64 [B]. Texts are cut to CLIP's length."""
        shape = {"padding": "max_length", "max_length": self._length, "truncation": True}
        ids = self._tokenizer(texts, **shape, return_tensors="np")
        pixels = (pictures.astype(np.float32) / 255 - self._mean) / self._std
        batch = {"ids": ids["input_ids"], "mask": ids["attention_mask"], "pixels": pixels.transpose(0, 3, 1, 2)}
        batch = self._backend.to_device(batch, whole=True)
        return self._backend.sampler(_cosines, self._model, batch).cpu().double().numpy()


@torch.no_grad()
def _cosines(model, batch):
    found = model(input_ids=batch["ids"], attention_mask=batch["mask"], pixel_values=batch["pixels"])
    return F.cosine_similarity(found.image_embeds.float(), found.text_embeds.float())


def _normalisation(path):
    if not storage.exists(path):
        return np.float32(MEAN), np.float32(STD)
    found = json.loads(storage.read_bytes(path))
    return np.float32(found.get("image_mean", MEAN)), np.float32(found.get("image_std", STD))


def clip_score(cosines):
    """100 times the mean cosine, negative ones as 0 (arXiv:2104.08718 without its factor of 2.5 and its prefix)."""
    return float(100 * np.maximum(cosines, 0).mean())


def scene_of(prompt):
    """The scene that a prompt describes. Raises ValueError where it is no caption of Scenes."""
    scene = scenes.parse(prompt)
    if scene is None:
        raise ValueError(f"{prompt!r}: not a caption of Scenes")
    return scene
