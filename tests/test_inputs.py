"""tools.inputs: prompts and pictures out of files, folders, shards and COCO's json, each named and numbered."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from itit.data import records
from tests.common import shared_data
from tools import inputs

SIDE = 16


def draw(count):
    return np.random.default_rng().integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def write_pictures(folder, names, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(names, pictures, strict=True):
        Image.fromarray(pixels).save(folder / name)


def write_records(path, examples):
    with records.RecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(records.encode_example(example))


def loaded(found):
    return [inputs.load(picture, SIDE) for picture in found]


def test_prompts_of_a_text_file_are_its_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one, two\n\n  a dog\nça\n")
    assert inputs.prompts(str(tmp_path / "a.txt")) == [("one, two", None), ("a dog", None), ("ça", None)]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="a.txt: not UTF-8"):
        inputs.prompts(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        inputs.prompts(str(tmp_path / "a.txt"))


def test_prompts_of_coco_are_its_annotations():
    path = shared_data() / "coco" / "captions_val2017.json"
    expected = json.loads(path.read_bytes())["annotations"]
    found = inputs.prompts(str(path))
    assert len(found) == 25_014
    assert found == [(caption["caption"], caption["image_id"]) for caption in expected]


def test_prompts_and_ids_of_records(tmp_path):
    keys = ["42/0", "42/1", "test/0", "7", "a.png"]
    write_records(tmp_path / "x-0.tfrecord", [{"key": key, "text": f"text {key}"} for key in keys])
    write_records(tmp_path / "x-1.tfrecord", [{"text": "no key"}])
    found = inputs.prompts(f"{tmp_path}/x-*")
    assert [prompt.image_id for prompt in found] == [42, 42, "test/0", 7, "a.png", None]
    assert [prompt.text for prompt in found] == [*(f"text {key}" for key in keys), "no key"]
    write_records(tmp_path / "y.tfrecord", [{"image": b"x"}])
    with pytest.raises(ValueError, match=r"y.tfrecord.*holds no text \('text'\)"):
        inputs.prompts(str(tmp_path / "y.tfrecord"))


def test_folders_patterns_and_records_of_pictures_are_found(tmp_path):
    pictures = draw(5)
    write_pictures(tmp_path / "a", ["x.png", "COCO_val2014_000000000042.png", "000000000007.png"], pictures[:3])
    write_pictures(tmp_path / "a" / "b", ["0.png", "1.png"], pictures[3:])
    (tmp_path / "a" / "list.txt").write_text("no picture")
    found = inputs.find(str(tmp_path / "a"))
    names = ["000000000007.png", "COCO_val2014_000000000042.png", "b/0.png", "b/1.png", "x.png"]
    assert [picture.name for picture in found] == names
    assert [picture.image_id for picture in found] == [7, 42, "b/0.png", "b/1.png", "x.png"]
    np.testing.assert_array_equal(loaded(found), pictures[[2, 1, 3, 4, 0]])
    np.testing.assert_array_equal(loaded(inputs.find(f"{tmp_path}/a/b/[01].png")), pictures[3:])
    data = [(tmp_path / "a" / name).read_bytes() for name in names]
    write_records(tmp_path / "x.tfrecord", [{"image": data[0], "key": "9/1"}, {"image": data[1]}])
    found = inputs.find(f"{tmp_path}/*.tfrecord,{tmp_path}/a/b/*.png")
    np.testing.assert_array_equal(loaded(found), pictures[[3, 4, 2, 1]])
    assert found[2].image_id == 9 and re.fullmatch(r"x.tfrecord:\d+", found[3].image_id)


def test_a_picture_with_several_captions_is_taken_once(tmp_path):
    write_pictures(tmp_path, ["0.png", "1.png"], draw(2))
    data = [(tmp_path / name).read_bytes() for name in ("0.png", "1.png")]
    examples = [{"image": data[n], "key": f"{n}/{caption}"} for n in (0, 1) for caption in range(3)]
    write_records(tmp_path / "x.tfrecord", examples)
    found = inputs.pictures(str(tmp_path / "x.tfrecord"))
    assert [picture.image_id for picture in found] == [0, 1] and [picture.read() for picture in found] == data


def test_pictures_of_coco_lie_in_a_folder():
    folder = shared_data() / "coco"
    pictures = json.loads((folder / "captions.json").read_bytes())["images"]
    there = {path.name for path in (folder / "images").iterdir()}
    absent = next((picture["file_name"] for picture in pictures if picture["file_name"] not in there), None)
    if absent:
        with pytest.raises(ValueError, match=f"{re.escape(absent)}: not there"):
            inputs.pictures(str(folder / "captions.json"), str(folder / "images"))
    else:
        found = inputs.pictures(str(folder / "captions.json"), str(folder / "images"))
        assert [picture.image_id for picture in found] == [picture["id"] for picture in pictures]
        assert inputs.load(found[0], SIDE).shape == (SIDE, SIDE, 3)
    with pytest.raises(ValueError, match="give the folder of its pictures, --images=DIR"):
        inputs.pictures(str(folder / "captions.json"))


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no file matches"):
        inputs.find(str(tmp_path / "a"))
    (tmp_path / "a" / "list.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no pictures"):
        inputs.find(str(tmp_path / "a"))
    (tmp_path / "a" / "bad.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="^bad.png: not a picture"):
        loaded(inputs.find(str(tmp_path / "a")))
    write_records(tmp_path / "text.tfrecord", [{"text": "a circle"}])
    with pytest.raises(ValueError, match=r"^text.tfrecord:0: holds no picture \('image'\)"):
        loaded(inputs.find(str(tmp_path / "text.tfrecord")))
    with pytest.raises(ValueError, match="list.txt"):
        inputs.find(str(tmp_path / "a" / "list.txt"))
    (tmp_path / "bad.json").write_text('{"images": [{"id": 3}]}')
    with pytest.raises(ValueError, match="needs a list 'annotations' of objects with 'image_id' and 'caption'"):
        inputs.prompts(str(tmp_path / "bad.json"))
    for images in ([{"id": 3}], [{"id": 3, "file_name": 4}], 5):
        (tmp_path / "bad.json").write_text(json.dumps({"images": images}))
        with pytest.raises(ValueError, match="bad.json: needs a list 'images' of objects with 'id' and 'file_name'"):
            inputs.pictures(str(tmp_path / "bad.json"), str(tmp_path))
