"""tools.make_scenes and tools.splits: shards read back, splits apart from each other, folders that appear whole."""

import io

import numpy as np
import pytest
from PIL import Image

from itit.data import records, scenes
from tools import make_scenes

COUNTS = {"paired": 60, "images": 70, "texts": 80, "test": 50}


def contents(folder, split):
    """[(scene of the picture or None, scene of the text or None)], a pair a record."""
    found = []
    for path in sorted(map(str, folder.glob(f"{split}-*-of-*.tfrecord"))):
        for offset, length in records.index(path).tolist():
            features = records.decode_example(records.read(path, offset, length))
            assert features.pop("key") == [f"{split}/{len(found)}".encode()]
            pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in features.pop("image", [])]
            captions = [data.decode() for data in features.pop("text", [])]
            assert not features and len(pictures) <= 1 and len(captions) <= 1
            shown, said = [*map(scenes.read, pictures), None][0], [*map(scenes.parse, captions), None][0]
            found.append((shown, said))
    return found


def test_splits(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.splits.RECORDS_A_SHARD", 25)  # several shards, the last one not full
    folder = tmp_path / "scenes"
    seed = int(np.random.default_rng().integers(1000))
    make_scenes.write(str(folder), COUNTS, seed)
    read = {split: contents(folder, split) for split in COUNTS}
    assert {split: len(found) for split, found in read.items()} == COUNTS
    for split in ("paired", "test"):
        assert all(picture == text and picture for picture, text in read[split])
    assert all(picture and text is None for picture, text in read["images"])
    assert all(text and picture is None for picture, text in read["texts"])
    for split, found in read.items():
        for pair in found:
            scene = pair[0] or pair[1]
            assert any(map(scenes.held_out, scene)) == (split == "test")
    assert Image.open(folder / "preview.png").size[0] > 500
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]

    make_scenes.write(str(tmp_path / "again"), COUNTS, seed)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_splits_are_drawn_apart():
    """The first scenes of two splits agree by chance only, for 40 seeds."""
    start = int(np.random.default_rng().integers(10**6))
    shown, said = [], []
    for seed in range(start, start + 40):
        pair, image, text = (next(make_scenes.examples(split, 1, seed)) for split in ("paired", "images", "texts"))
        shown.append([scenes.read(np.asarray(Image.open(io.BytesIO(e["image"])))) for e in (pair, image)])
        said.append(scenes.parse(text["text"]))
    assert sum(a == b for a, b in shown) < 5
    assert sum(a == text for (a, _), text in zip(shown, said, strict=True)) < 5
    assert sum(b == text for (_, b), text in zip(shown, said, strict=True)) < 5


def test_never_overwrites_and_clears_what_a_killed_call_left(tmp_path):
    left = tmp_path / "new.partial"
    left.mkdir()
    (left / "paired-00000-of-00009.tfrecord").write_bytes(b"half")
    make_scenes.write(str(tmp_path / "new"), {"paired": 2}, 0)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        ".paired-00000-of-00001.tfrecord.index",
        "paired-00000-of-00001.tfrecord",
        "preview.png",
    ]
    with pytest.raises(ValueError, match="already there"):
        make_scenes.write(str(tmp_path / "new"), {"paired": 2}, 0)
