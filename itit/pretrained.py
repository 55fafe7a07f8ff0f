"""A trained ITIT to use: `ITIT.from_pretrained(path).generate(prompts)`, and `.caption(images)`. Plain torch.

    from itit import ITIT

    model = ITIT.from_pretrained("exported")
    pictures = model.generate(["a small red circle in the top left"], seed=0)
    texts = model.caption(pictures)

What it loads `tools.export` writes. The networks alone: `itit.models.load(path)`.

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import os

import numpy as np
import torch
import tqdm
from PIL import Image

from itit import storage, weights, weightsdir
from itit.backend import Local
from itit.config import Config, DataConfig, replace
from itit.data import images as images_lib
from itit.data.text import Tokenizer
from itit.models import encode_text
from itit.models.layers import set_compute_dtype
from itit.objectives import empty_ids
from itit.samples import Translator
from itit.state import DTYPES
from itit.train_step import State

BATCH_SIZE = 16


class ITIT:
    """Texts to pictures and pictures to texts. `record`: what the run wrote down when it was exported, a dict."""

    def __init__(self, state, tokenizer, config, record, backend):
        self.state, self.tokenizer, self.config, self.record, self.backend = state, tokenizer, config, record, backend

    @classmethod
    def from_pretrained(cls, path, device=None, dtype=None, t5=None, vqgan=None, vocabulary=None):
        """Loads a model with its text encoder, image tokenizer and vocabulary.

        Args:
          path: the folder that tools.export wrote, or the safetensors file in it.
          device: torch device; by default the GPU, if there is one, else the processor.
          dtype: type of matrix products, "bf16" or "fp32"; by default that of training.
          t5, vqgan, vocabulary: where these are now, if neither in the folder nor where they were when it was written.

        Raises ValueError, one line, where a file is absent, damaged, or not the one that the model was trained with.
        """
        file, _ = weights.exported_file(path)
        record = weights.read_record(file)
        config = Config(**weights.sections_of(record, file))
        dtype = dtype or record["compute_dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")
        backend = Local(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        given = {"t5": t5, "vqgan": vqgan, "vocabulary": vocabulary}
        parts = {name: _locate(name, given[name], record["parts"][name], file) for name in given}
        text_encoder = weights.load_t5(*parts["t5"]).to(DTYPES[dtype])
        image_tokenizer = weights.load_vqgan(*parts["vqgan"]) if parts["vqgan"] else None
        model = weights.load_itit(path)
        set_compute_dtype(model, DTYPES[dtype])
        text_encoder, model = backend.adopt(text_encoder), backend.adopt(model)
        nothing = encode_text(text_encoder, empty_ids(config.model.num_text_tokens, backend.device))
        image_tokenizer = image_tokenizer and backend.adopt(image_tokenizer)
        tokenizer = _read_vocabulary(*parts["vocabulary"]) if parts["vocabulary"] else None
        return cls(State(model, text_encoder, image_tokenizer, nothing, None, None), tokenizer, config, record, backend)

    def generate(self, prompts, seed=0, num_steps=None, guidance_scale=None, batch_size=BATCH_SIZE, progress=True):
        """One picture a prompt. The same prompts, seed and batch size give the same pictures on the same device.

        Args:
          prompts: list of str; a text alone is a list of one. What exceeds L tokens is cut.
          num_steps, guidance_scale: of parallel decoding; by default as trained with (see config.DecodeConfig).
          progress: show a bar.

        Returns:
          list of PIL images, S x S.
        """
        prompts = _texts(prompts)
        decode = {"num_decode_steps": num_steps, "guidance_scale": guidance_scale}
        config = self._configured(seed, decode)
        text_ids = torch.from_numpy(self._need("vocabulary").encode(prompts, config.model.num_text_tokens))
        self._need("vqgan")

        def draw(translator, ids, i):
            return translator.pixels(translator.pictures(ids, f"prompt{i}"))

        made = self._in_batches(draw, text_ids, config, batch_size, "generating" if progress else None)
        return [Image.fromarray(pixels) for pixels in made]

    def caption(self, images, beams=None, batch_size=BATCH_SIZE, progress=True):
        """One text a picture, by beam search, which draws nothing at random.

        Args:
          images: list of PIL images or of paths, of any size: the centre square is used. One alone is a list of one.
          beams: by default as in the run, 4.

        Returns:
          list of str.
        """
        config = self._configured(0, {"beam_size": beams})
        vqgan, vocabulary = self._need("vqgan"), self._need("vocabulary")
        pixels = torch.from_numpy(np.stack(_pixels(images, vqgan.config.image_size)))

        def tell(translator, pixels, _):
            with torch.no_grad():
                image_ids = vqgan.tokenize(pixels)
            return vocabulary.decode(translator.captions(image_ids).cpu().numpy())

        return self._in_batches(tell, pixels, config, batch_size, "captioning" if progress else None)

    def _configured(self, seed, decode):
        decode = {name: value for name, value in decode.items() if value is not None}
        return replace(self.config, seed=seed, **decode).resolve()

    def _in_batches(self, function, rows, config, batch_size, title):
        """The concatenated results of function(translator, rows of a batch, its index)."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        translator, results = Translator(self.state, config, self.backend, 0, batch_size), []
        with tqdm.tqdm(total=len(rows), desc=title, disable=title is None, leave=False) as bar:
            for i, part in enumerate(rows.split(batch_size)):
                results += list(function(translator, part.to(self.backend.device), i))
                bar.update(len(part))
        return results

    def _need(self, name):
        part = {"vqgan": self.state.vqgan, "vocabulary": self.tokenizer}[name]
        if part is None:
            raise ValueError(f"this model was exported without {name}: give from_pretrained one, {name}=PATH")
        return part


def _locate(name, given, recorded, file):
    """(path, SHA-256) of a part, or None where it was exported without and none is given."""
    if not recorded:
        return (given, None) if given else None
    there = recorded["path"]
    path = given or (there if storage.is_remote(there) else storage.join(os.path.dirname(file), there))
    if not storage.exists(path):
        raise ValueError(f"{path}: not there; give from_pretrained the place of its {name}, {name}=PATH")
    return path, recorded["sha256"]


def _read_vocabulary(path, sha256):
    tokenizer = Tokenizer(path)
    weightsdir.check_hash(path, sha256, storage.sha256(path))
    return tokenizer


def _texts(prompts):
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is a {type(prompt).__name__}: must be a text")
    if not prompts:
        raise ValueError("no prompts: give at least one text")
    return prompts


def _pixels(images, size):
    """list of uint8 [S, S, 3]. Raises ValueError naming the picture that is none."""
    images = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else list(images)
    if not images:
        raise ValueError("no images: give at least one")
    return [_square(i, image, size) for i, image in enumerate(images)]


def _square(i, image, size):
    try:
        if isinstance(image, Image.Image):
            return images_lib.to_square(image, size)
        if isinstance(image, (str, os.PathLike)):
            with storage.open(os.fspath(image)) as file:
                return images_lib.decode(file.read(), size, DataConfig().max_image_pixels)
    except OSError as error:
        raise ValueError(f"image {i}: {image}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"image {i}: {error}") from None
    raise ValueError(f"image {i} is a {type(image).__name__}: must be a PIL image or a path")
