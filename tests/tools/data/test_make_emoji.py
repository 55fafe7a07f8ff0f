"""tools.make_emoji on the real set: each emoji in one split, one tone of each role held out."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from itit.data import records
from tests.helpers.common import shared_data
from tools import make_emoji


def read(folder, split):
    found = []
    for path in sorted(folder.glob(f"{split}-*.tfrecord")):
        for offset, length in records.index(str(path)).tolist():
            found.append(records.decode_example(records.read(str(path), offset, length)))
    return found


def test_splits_of_the_real_set(tmp_path):
    data = shared_data()
    seed = int(np.random.default_rng().integers(1000))
    make_emoji.write(str(data), str(tmp_path / "out"), 400, seed)
    found = {split: read(tmp_path / "out", split) for split in make_emoji.FEATURES}
    assert len(found["paired"]) == 400 and abs(len(found["images"]) - len(found["texts"])) <= 1
    names = {}
    for line in (data / "emoji" / "captions.jsonl").read_text().splitlines():
        item = json.loads(line)
        names[item["file"]] = item
    keys = {split: [example["key"][0].decode() for example in found[split]] for split in found if split != "coco"}
    assert sorted(sum(keys.values(), [])) == sorted(names)  # each emoji in exactly one split
    for split in keys:
        for key, example in zip(keys[split], found[split], strict=True):
            assert set(example) == {"key", *make_emoji.FEATURES[split]}
            if "image" in example:
                assert example["image"] == [(data / "emoji" / key).read_bytes()]
            if "text" in example:
                assert example["text"] == [names[key]["caption"].encode()]

    # Every role has five tones, one of them in the test; no tone and no role is without training pictures.
    codes = {"1f3fb": "light", "1f3fc": "medium-light", "1f3fd": "medium", "1f3fe": "medium-dark", "1f3ff": "dark"}
    test_roles, train_roles, tones = collections.Counter(), collections.Counter(), collections.Counter()
    for split in keys:
        for key in keys[split]:
            tone = [code for code in codes if code in key]  # the tone as the file name tells it
            assert bool(tone) == names[key]["skin_tone"] and (tone or split != "test")
            if tone:
                role = names[key]["caption"].replace(f"{codes[tone[0]]} skin tone", "")
                (test_roles if split == "test" else train_roles)[role] += 1
                tones[split, tone[0]] += 1
    assert set(test_roles.values()) == {1} and set(train_roles.values()) == {4}
    assert test_roles.keys() == train_roles.keys()
    assert min(tones["test", code] for code in codes) > 20 and len(tones) == 4 * len(codes)

    annotations = json.loads((data / "coco" / "captions_val2017.json").read_text())["annotations"]
    captions = {" ".join(item["caption"].split()) for item in annotations}
    assert {example["text"][0].decode() for example in found["coco"]} == captions - {""}
    assert len(found["coco"]) == len(captions - {""})


def test_test_split_does_not_depend_on_the_seed():
    tones = [f"{role}: {tone} skin tone{hair}" for role in ("man", "cook") for hair in ("", ", bald")
             for tone in make_emoji.TONES]  # fmt: skip
    emoji = [{"file": name, "caption": name} for name in [*tones, "lone: dark skin tone", *map(str, range(20))]]
    dealt = [make_emoji.split_emoji(emoji, 5, seed) for seed in (0, 1)]
    assert dealt[0]["test"] == dealt[1]["test"] and len(dealt[0]["test"]) == 4
    assert dealt[0]["paired"] != dealt[1]["paired"]
    assert dealt[0] == make_emoji.split_emoji(emoji, 5, 0)
    with pytest.raises(ValueError, match="--num_pairs=99: must be at most 37"):
        make_emoji.split_emoji(emoji, 99, 0)


def test_without_captions_of_coco(tmp_path, capsys):
    data = tmp_path / "data"
    (data / "emoji" / "images").mkdir(parents=True)
    lines = []
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(data / "emoji" / "images" / f"{number}.png")
        lines.append(json.dumps({"file": f"images/{number}.png", "caption": f"name {number}"}))
    (data / "emoji" / "captions.jsonl").write_text("\n".join(lines))
    make_emoji.write(str(data), str(tmp_path / "out"), 10, 0)
    assert [len(read(tmp_path / "out", split)) for split in ("paired", "images", "texts", "coco")] == [10, 10, 10, 0]
    assert "coco: left out, " in capsys.readouterr().out


def test_missing_and_damaged_input_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="--data=.*captions.jsonl is not there"):
        make_emoji.write(str(tmp_path), str(tmp_path / "out"), 1, 0)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.jpg", "caption": "a"}\n{"file": "b.jpg"}\n')
    with pytest.raises(ValueError, match="captions.jsonl:2: needs"):
        make_emoji.read_emoji(str(tmp_path))
    assert not (tmp_path / "out").exists()
