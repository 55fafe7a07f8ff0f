"""tools.make_scenes and splits: shards read back, splits apart from each other, folders that appear whole."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from itit.data import records, scenes
from tests.helpers.common import ROOT
from tools import make_scenes

COUNTS = {"paired": 60, "images": 70, "texts": 80, "never": 50, "unpaired": 45, "seen": 40, "extra": 55}


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
    monkeypatch.setattr("tools.data.splits.RECORDS_A_SHARD", 25)  # several shards, the last one not full
    folder = tmp_path / "scenes"
    seed = int(np.random.default_rng().integers(1000))
    make_scenes.write(str(folder), COUNTS, seed)
    read = {split: contents(folder, split) for split in COUNTS}
    assert {split: len(found) for split, found in read.items()} == COUNTS
    for split in ("paired", *scenes.GROUPS, "extra"):
        assert all(picture == text and picture for picture, text in read[split])
    assert all(picture and text is None for picture, text in read["images"])
    assert all(text and picture is None for picture, text in read["texts"])
    expected = {"paired": {"seen"}, "images": {"seen", "unpaired"}} | {group: {group} for group in scenes.GROUPS}
    expected |= dict.fromkeys(("texts", "extra"), expected["images"])
    for split, found in read.items():
        assert {scenes.group_of(picture or text) for picture, text in found} == expected[split]
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


def test_fewer_records_are_the_first_of_more():
    seed = int(np.random.default_rng().integers(1000))
    for split in make_scenes.SPLITS:
        more = list(make_scenes.examples(split, 30, seed, wrong_captions=0.5))
        assert list(make_scenes.examples(split, 12, seed, wrong_captions=0.5)) == more[:12]


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_extra_pairs_with_captions_of_other_scenes(share):
    seed = int(np.random.default_rng().integers(1000))
    drawn = list(make_scenes.examples("extra", 300, seed, jitter=True, wrong_captions=share))
    shown = [scenes.read(np.asarray(Image.open(io.BytesIO(e["image"])))) for e in drawn]
    wrong = [scenes.parse(e["text"]) != picture for e, picture in zip(drawn, shown, strict=True)]
    assert sum(wrong) == pytest.approx(300 * share, abs=45)
    others = list(make_scenes.examples("paired", 30, seed, wrong_captions=1))
    assert others == list(make_scenes.examples("paired", 30, seed))


def test_by_command(tmp_path):
    command = [sys.executable, "-m", "tools.make_scenes", f"--output={tmp_path / 'new'}", "--num_pairs=3"]
    command += ["--num_images=0", "--num_texts=2", "--num_test=4", "--num_extra=5", "--wrong_captions=0.5"]
    subprocess.run(command, cwd=ROOT, check=True)
    found = {split: len(contents(tmp_path / "new", split)) for split in make_scenes.SPLITS}
    assert found == {"paired": 3, "images": 0, "texts": 2, "never": 4, "unpaired": 4, "seen": 4, "extra": 5}
    refused = subprocess.run([*command, "--wrong_captions=1.5"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "wrong_captions" in refused.stderr.splitlines()[-1]


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
