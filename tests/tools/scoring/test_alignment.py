"""CLIP score with a random CLIP against transformers' own way, and the exact scores of Scenes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from itit.backends.local import Local
from itit.data import scenes
from tools import score_alignment
from tools.scoring import alignment

PROMPTS = ["a cat", "a dog on a mat", "cat dog cat dog cat dog cat dog cat dog cat dog"]


def write_pictures(folder, prompts, pictures):
    (folder / "pictures").mkdir()
    lines = []
    for i, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        Image.fromarray(picture).save(folder / "pictures" / f"{i}.png")
        lines.append(json.dumps({"index": i, "prompt": prompt, "file": f"pictures/{i}.png"}))
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    pieces = ["a", "on", "cat", "dog", "mat"]
    letters = sorted(set("".join(pieces)))
    vocab = [*letters, *(f"{x}</w>" for x in letters), "on</w>", "ca", "cat</w>", "do", "dog</w>", "ma", "mat</w>",
             "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\no n</w>\nc a\nca t</w>\nd o\ndo g</w>\nm a\nma t</w>\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=len(vocab), max_position_embeddings=10, bos_token_id=len(vocab) - 2,
                eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1, **sizes)  # fmt: skip
    torch.seed()
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(image_size=32, patch_size=8, **sizes), projection_dim=12
    )
    transformers.CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_clip_score_as_transformers(clip_folder, tmp_path):
    import transformers

    pictures = np.random.default_rng().integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
    pairs = alignment.read_index(write_pictures(tmp_path, PROMPTS, pictures))
    clip = alignment.Clip(str(clip_folder), Local("cpu"))
    result = score_alignment.score_clip(pairs, clip, 2)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    cosines = []
    for prompt, picture in zip(PROMPTS, pictures, strict=True):
        ids = tokenizer(prompt, return_tensors="pt", truncation=True, max_length=10)
        pixels = torch.from_numpy((picture / 255 - alignment.MEAN) / alignment.STD).float().movedim(-1, 0)[None]
        with torch.no_grad():
            found = model(**ids, pixel_values=pixels)
            cosines.append(float(found.logits_per_image / model.logit_scale.exp()))
    assert result["clip_score"] == pytest.approx(100 * np.maximum(cosines, 0).mean(), abs=1e-4)
    np.testing.assert_allclose(clip(pictures, PROMPTS), cosines, atol=1e-6)
    assert result["num_pictures"] == 3 and len(result["clip_sha256"]) == 64


def test_negative_cosines_count_as_nothing():
    assert alignment.clip_score(np.array([0.5, -0.5])) == 25


def test_folders_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="index.jsonl: not there"):
        alignment.read_index(str(tmp_path))
    with pytest.raises(ValueError, match="no model.safetensors"):
        alignment.Clip(str(tmp_path), Local("cpu"))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="not a CLIP"):
        alignment.Clip(str(tmp_path), Local("cpu"))


def test_scenes_are_counted_exactly(tmp_path):
    rng = np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(12)]
    shown = [scenes.render(scene, rng) for scene in drawn]
    shown[0] = np.full_like(shown[0], 200)
    folder = write_pictures(tmp_path, [scenes.describe(scene, rng) for scene in drawn], shown)
    result = score_alignment.score_scenes(alignment.read_index(folder))
    right = [scenes.read(picture) == scene for picture, scene in zip(shown, drawn, strict=True)]
    assert not right[0] and result["picture_score"] == sum(right) / 12 >= 0.8
    with pytest.raises(ValueError, match="not a caption of Scenes"):
        alignment.scene_of("a cat on a mat")
