"""tools.scene_ids and scene_splits: the ids that make_scenes and tokenize would make, once, split by split."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from itit.checkpoint import weightsdir
from itit.checkpoint.weights import load_vqgan
from itit.data import made_with, records, shard_index
from itit.data.text import Tokenizer
from itit.models import VQGAN
from tests.helpers.common import ROOT
from tests.helpers.finished_run import VQGAN_SIZES
from tools import make_scenes, scene_ids, train_sentencepiece
from tools.data import scene_splits

COUNTS = {"paired": 70, "texts": 65, "images": 3, "extra": 5, "never": 2}


def read(path):
    spans = shard_index.read(path)
    np.testing.assert_array_equal(spans, records.index(path))
    return [records.decode_example(records.read(path, *span)) for span in spans.tolist()]


def test_the_same_ids_as_by_way_of_shards(tmp_path):
    torch.seed()
    seed = int(np.random.default_rng().integers(1000))
    weightsdir.save(str(tmp_path / "vqgan"), VQGAN(VQGAN_SIZES).state_dict(), VQGAN_SIZES)
    texts = [caption for _, caption in scene_splits.draw("texts", 300, seed)]
    (tmp_path / "words.model").write_bytes(train_sentencepiece.train(texts, 100))
    splits = ",".join(f"{split}:{count}" for split, count in COUNTS.items())
    command = [sys.executable, "-m", "tools.scene_ids", f"--splits={splits}", f"--output={tmp_path / 'ids'}"]
    command += [f"--vqgan={tmp_path / 'vqgan'}", f"--vocabulary={tmp_path / 'words.model'}", f"--seed={seed}"]
    command += ["--wrong_captions=0.5", "--backend=cpu", "--num_text_tokens=40"]
    subprocess.run(command, cwd=ROOT, check=True)
    model, vocabulary = load_vqgan(str(tmp_path / "vqgan")), Tokenizer(str(tmp_path / "words.model"))
    for split, count in COUNTS.items():
        found = read(str(tmp_path / "ids" / f"{split}-00000-of-00001.tfrecord"))
        expected = list(make_scenes.examples(split, count, seed, wrong_captions=0.5))
        assert [row.pop("key") for row in found] == [[row.pop("key").encode()] for row in expected]
        for row, raw in zip(found, expected, strict=True):
            assert {"image_ids": "image", "text_ids": "text"}.items() >= {(k, k.replace("_ids", "")) for k in row}
            assert len(row) == len(raw)
            if "image" in raw:
                picture = torch.from_numpy(np.array(Image.open(io.BytesIO(raw["image"]))))
                np.testing.assert_array_equal(row["image_ids"], model.tokenize(picture[None])[0])
            if "text" in raw:
                np.testing.assert_array_equal(row["text_ids"], vocabulary.encode([raw["text"]], 40)[0])
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ids").iterdir()}
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert not again.stdout
    assert written == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ids").iterdir()}
    other = [*command, "--splits=images:4"]
    refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "--splits was 'images:3', is now 'images:4'; name another" in refused.stderr
    for split in COUNTS:
        record = json.loads((tmp_path / "ids" / f"{split}-settings.json").read_text())
        assert record["vqgan"] == made_with.checksum(f"{tmp_path}/vqgan/model.safetensors")
        assert record["vocabulary"] == made_with.checksum(f"{tmp_path}/words.model")


@pytest.mark.parametrize("text", ["paired", "paired:0", "pairs:3", "paired:3,paired:4", "paired:x"])
def test_splits_are_read(text):
    assert scene_ids.read_splits("paired:3,images:10") == {"paired": 3, "images": 10}
    with pytest.raises(ValueError, match="--splits: .*must be SPLIT:RECORDS"):
        scene_ids.read_splits(text)
