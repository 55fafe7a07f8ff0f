"""inputs: prompts and pictures out of files, folders, shards and COCO's json, each named and numbered."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from itit.data import records
from tests.helpers.common import shared_data
from tools.generation import inputs

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
    with pytest.raises(ValueError, match="a.txt:1: not UTF-8"):
        inputs.prompts(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        inputs.prompts(str(tmp_path / "a.txt"))


def test_prompts_end_where_lines_end(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffone\u2028still one\r\ntwo\x0cstill two\rthree \n".encode())
    assert [prompt.text for prompt in inputs.prompts(str(tmp_path / "a.TXT"))] == [
        "one\u2028still one", "two\x0cstill two", "three"
    ]  # fmt: skip


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


def test_references_of_records_have_the_ids_of_their_pictures(tmp_path):
    """Of a picture with several captions all are its own, whatever it is called; two pictures never share them."""
    write_pictures(tmp_path, [f"{n}.png" for n in range(6)], draw(6))
    keys = ["42/0", "42/1", "a b/x.jpg/0", "a b/x.jpg/1", "a b/x.jpg/2", "y.png", "00.tar/1", "00.tar/2", "7"]
    whose = [0, 0, 1, 1, 1, 2, 3, 4, 5]
    data = [(tmp_path / f"{n}.png").read_bytes() for n in range(6)]
    examples = [{"image": data[n], "key": key, "text": f"text {key}"} for n, key in zip(whose, keys, strict=True)]
    for shard in range(2):
        write_records(tmp_path / f"x-{shard}.tfrecord", examples[shard * 3 : shard * 3 + 3 + 3 * shard])
    found = inputs.references(f"{tmp_path}/x-*")
    assert list(found) == [picture.image_id for picture in inputs.pictures(f"{tmp_path}/x-*")]
    assert found == {
        42: ["text 42/0", "text 42/1"], "a b/x.jpg": [f"text a b/x.jpg/{n}" for n in range(3)], "y.png": ["text y.png"],
        "00.tar/1": ["text 00.tar/1"], "00.tar/2": ["text 00.tar/2"], 7: ["text 7"],
    }  # fmt: skip


def test_two_pictures_never_share_an_id(tmp_path):
    pictures = draw(8)
    names = ["7.png", "7.bmp", "007.png", "COCO_val2014_000000000007.png", "8.png", "b/8.png", "COCO_x1_8.png"]
    for name, pixels in zip(names, pictures, strict=False):
        write_pictures((tmp_path / "a" / name).parent, [(tmp_path / "a" / name).name], [pixels])
    found = inputs.pictures(str(tmp_path / "a"))
    ids = {picture.name: picture.image_id for picture in found}
    assert ids == {name: name for name in names}
    (tmp_path / "a" / "COCO_x1_8.png").unlink()
    ids = {picture.name: picture.image_id for picture in inputs.pictures(str(tmp_path / "a"))}
    assert ids["8.png"] == 8 and ids["b/8.png"] == "b/8.png"
    # By patterns names have no folders; where they are equal, the paths tell them apart.
    for folder in "xy":
        write_pictures(tmp_path / folder, ["same.png", "9.png"], draw(2))
    found = inputs.pictures(f"{tmp_path}/[xy]/*.png")
    paths = [f"{tmp_path}/{name}" for name in ("x/9.png", "x/same.png", "y/9.png", "y/same.png")]
    assert [picture.image_id for picture in found] == paths


def test_equal_keys_of_records_are_one_picture_only_where_the_picture_is_the_same(tmp_path):
    write_pictures(tmp_path, ["0.png", "1.png", "2.png"], draw(3))
    data = [(tmp_path / f"{n}.png").read_bytes() for n in range(3)]
    write_records(tmp_path / "x.tfrecord", [{"image": data[0], "key": "5/0"}, {"image": data[0], "key": "5/1"},
                                            {"image": data[1], "key": "6/0"}])  # fmt: skip
    write_records(tmp_path / "y.tfrecord", [{"image": data[2], "key": "6/0"}, {"image": data[2], "key": "6/1"}])
    found = inputs.pictures(f"{tmp_path}/*.tfrecord")
    assert len({picture.image_id for picture in found}) == len(found)
    assert found[0].image_id == 5 and [picture.read() for picture in found[:2]] == data[:2]
    assert {picture.read() for picture in found} == set(data)
    assert found[1].image_id == found[1].name and found[3].image_id == "6/1"


def test_pictures_that_are_not_read_are_counted(tmp_path, capsys):
    write_pictures(tmp_path / "a", ["x.png", "y.tif", "z.TIFF"], draw(3))
    (tmp_path / "a" / "._x.png").write_bytes(b"x")
    Image.open(tmp_path / "a" / "x.png").save(tmp_path / "a" / "w.jfif", "JPEG")
    assert [picture.name for picture in inputs.find(str(tmp_path / "a"))] == ["w.jfif", "x.png"]
    assert capsys.readouterr().err == f"{tmp_path}/a: passed over: 1 .tif, 1 .tiff\n"
    with pytest.raises(ValueError, match="y.tif: pictures of this kind are not read, only .jpg"):
        inputs.find(f"{tmp_path}/a/*")
    write_pictures(tmp_path / "b [2021], c", ["x.tif"], draw(1))
    with pytest.raises(ValueError, match="no pictures .*, but 1 .tif"):
        inputs.find(f"{tmp_path}/b [2021], c")
    write_pictures(tmp_path / "b [2021], c", ["x.png"], draw(1))
    assert len(inputs.find(f"{tmp_path}/b [2021], c")) == len(inputs.find(f"{tmp_path}/b [2021], c/*.png")) == 1


def test_damage_is_handed_on_and_the_rest_is_read(tmp_path):
    pictures = draw(3)
    write_pictures(tmp_path / "in" / "a", ["0.png", "1.png"], pictures[:2])
    write_pictures(tmp_path / "in" / "b", ["0.png"], pictures[2:])
    names = {1: "a/0.png", 2: "b/0.png", 3: "a/2.png"}
    (tmp_path / "c.json").write_text(json.dumps({"images": [{"id": n, "file_name": f} for n, f in names.items()]}))
    with pytest.raises(ValueError, match="c.json: image 3: no file a/2.png in"):
        inputs.pictures(str(tmp_path / "c.json"), str(tmp_path / "in"))
    bad = []
    found = inputs.pictures(str(tmp_path / "c.json"), str(tmp_path / "in"), bad.append)
    assert [picture.image_id for picture in found] == [1, 2] and len(bad) == 1
    np.testing.assert_array_equal(loaded(found), pictures[[0, 2]])
    twice = {"images": [{"id": 1, "file_name": "a/0.png"}, {"id": 1, "file_name": "b/0.png"}]}
    (tmp_path / "c.json").write_text(json.dumps(twice))
    with pytest.raises(ValueError, match="the id 1 is there twice: a/0.png and b/0.png"):
        inputs.pictures(str(tmp_path / "c.json"), str(tmp_path / "in"))
    data = (tmp_path / "in" / "a" / "0.png").read_bytes()
    write_records(tmp_path / "x.tfrecord", [{"image": data}] * 3)
    whole = bytearray((tmp_path / "x.tfrecord").read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "x.tfrecord").write_bytes(whole[:-3])
    bad = []
    assert len(inputs.find(f"{tmp_path}/x.tfrecord", bad.append)) == 1
    assert [type(error) for error in bad] == [records.BadRecord] * 2


def test_size_is_that_of_the_file(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    (picture,) = inputs.find(str(tmp_path))
    assert inputs.size(picture) == (5, 3)
    (tmp_path / "a.png").unlink()
    for read in (inputs.size, lambda picture: inputs.load(picture, SIDE)):
        with pytest.raises(inputs.BadPicture, match="a.png: not there any more"):
            read(picture)


def test_pictures_of_coco_lie_in_a_folder():
    folder = shared_data() / "coco"
    pictures = json.loads((folder / "captions.json").read_bytes())["images"]
    there = {path.name for path in (folder / "images").iterdir()}
    absent = next((picture["file_name"] for picture in pictures if picture["file_name"] not in there), None)
    if absent:
        with pytest.raises(ValueError, match=f"no file {re.escape(absent)} in"):
            inputs.pictures(str(folder / "captions.json"), str(folder / "images"))
    else:
        found = inputs.pictures(str(folder / "captions.json"), str(folder / "images"))
        assert [picture.image_id for picture in found] == [picture["id"] for picture in pictures]
        assert inputs.load(found[0], SIDE).shape == (SIDE, SIDE, 3)
    with pytest.raises(ValueError, match="give the folder of its pictures, --images=DIR"):
        inputs.pictures(str(folder / "captions.json"))


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="no pictures"):
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
