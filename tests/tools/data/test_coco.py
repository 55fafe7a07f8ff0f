"""COCO's json in both forms: which picture belongs to which captions, and what is damage."""

import json

import numpy as np
import pytest

from tests.tools.data.test_sources import split
from tools.data.sources import coco, coco_captions
from tools.data.sources.item import everything
from tools.data.sources.lookup import Lookup


def write_coco(root):
    """Three pictures, one of them missing, in both forms of json."""
    (root / "val").mkdir()
    for number in (1, 2):
        (root / "val" / f"{number:04d}.jpg").write_bytes(b"%d" % number)
    captions = {1: ["one", "eins"], 2: ["two"], 3: ["three"]}
    official = {"images": [{"id": n, "file_name": f"{n:04d}.jpg"} for n in captions],
                "annotations": [{"image_id": n, "caption": c} for n in (3, 1, 2) for c in captions[n]]}  # fmt: skip
    splits = {1: "train", 2: "restval", 3: "test"}
    karpathy = {"images": [{"cocoid": n, "filename": f"{n:04d}.jpg", "split": splits[n],
                            "sentences": [{"raw": c} for c in captions[n]]} for n in captions]}  # fmt: skip
    (root / "official.json").write_text(json.dumps(official))
    (root / "karpathy.json").write_text(json.dumps(karpathy))
    return captions


@pytest.mark.parametrize("form", ["official", "karpathy"])
def test_coco_keeps_the_captions_of_a_picture_together(tmp_path, form):
    captions = write_coco(tmp_path)
    found, bad = split(everything(coco.Coco(f"{tmp_path}/{form}.json", f"{tmp_path}/val")))
    assert {item.key: item.load_texts()[0] for item in found} == {"1": captions[1], "2": captions[2]}
    assert [item.image.read(9) for item in found] == [b"1", b"2"]
    assert len(bad) == 1 and "picture 3: no file 0003.jpg" in bad[0]
    found, bad = split(everything(coco.Coco(f"{tmp_path}/{form}.json")))
    assert [item.key for item in found] == ["1", "2", "3"] and not bad and {item.image for item in found} == {None}
    (tmp_path / "list").write_text("val2014/0002.jpg 2\n")
    found, bad = split(everything(coco.Coco(f"{tmp_path}/{form}.json", f"{tmp_path}/val", "", f"{tmp_path}/list")))
    assert [item.key for item in found] == ["2"] and not bad


def test_coco_splits_of_karpathy(tmp_path):
    write_coco(tmp_path)
    found, _ = split(everything(coco.Coco(f"{tmp_path}/karpathy.json", "", "train, restval")))
    assert [item.key for item in found] == ["1", "2"]
    with pytest.raises(ValueError, match="--karpathy_splits=val: the splits of .* are: restval, test, train"):
        list(everything(coco.Coco(f"{tmp_path}/karpathy.json", "", "val")))
    with pytest.raises(ValueError, match="only Karpathy's json has them"):
        list(everything(coco.Coco(f"{tmp_path}/official.json", "", "val")))
    for content in ("[]", "{", '{"images": [{}]}', '{"images": [], "annotations": [{"image_id": 1}]}', "[" * 99999):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match="x.json: neither captions of COCO nor Karpathy's"):
            list(everything(coco.Coco(f"{tmp_path}/x.json")))
    with pytest.raises(ValueError, match="is no folder with pictures"):
        list(everything(coco.Coco(f"{tmp_path}/karpathy.json", f"{tmp_path}/none")))


def write_same_names(root):
    """Pictures a/0.jpg, a/1.jpg, b/0.jpg, b/1.jpg, each of its own name as bytes, and a json whose captions say so."""
    names = [f"{folder}/{n}.jpg" for folder in "ab" for n in (0, 1)]
    for name in names:
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(name.encode())
    order = np.random.default_rng().permutation(4).tolist()
    write_official(root / "c.json", {n: names[n] for n in order}, {n: [names[n]] for n in order})
    return names


def write_official(path, names, captions):
    path.write_text(json.dumps({
        "images": [{"id": n, "file_name": name} for n, name in names.items()],
        "annotations": [{"image_id": n, "caption": text} for n, texts in captions.items() for text in texts],
    }))  # fmt: skip


def pairs(items):
    """(bytes of the picture, its texts) of each Item; the messages of BadItems."""
    found, bad = split(items)
    return [(item.image.read(99).decode(), *item.texts) for item in found], bad


def test_one_file_name_in_two_folders_is_never_the_wrong_picture(tmp_path):
    names = write_same_names(tmp_path)
    inside = f"{tmp_path}/in"
    for images in (inside, f"{inside}/", f"{inside}/a,{inside}/b", f"{inside}/b, {inside}/a", f"{inside},{inside}/a"):
        found, bad = pairs(everything(coco.Coco(f"{tmp_path}/c.json", images)))
        assert sorted(found) == [(name, name) for name in names] and not bad, images
    found, bad = pairs(everything(coco.Coco(f"{tmp_path}/c.json", f"{inside}/a")))
    assert sorted(found) == [(name, name) for name in names[:2]]
    assert len(bad) == 2 and all("no file b/" in message for message in bad)


def test_a_last_part_of_a_name_does_where_it_is_the_only_one(tmp_path):
    write_same_names(tmp_path)
    inside = f"{tmp_path}/in"
    (tmp_path / "in" / "lone.jpg").write_bytes(b"lone")
    (tmp_path / "in" / "0.jpg").write_bytes(b"0")
    names = {1: "train2014/lone.jpg", 2: "1.jpg", 3: "0.jpg", 4: "b\\1.jpg"}
    write_official(tmp_path / "d.json", names, {n: [str(n)] for n in names})
    found, bad = pairs(everything(coco.Coco(f"{tmp_path}/d.json", inside)))
    assert found == [("lone", "1"), ("0", "3"), ("b/1.jpg", "4")]
    assert len(bad) == 1 and f"picture 2: the name 1.jpg may be {inside}/a/1.jpg or {inside}/b/1.jpg" in bad[0]
    found, bad = pairs(everything(coco.Coco(f"{tmp_path}/d.json", f"{inside}/b")))
    assert found == [("b/1.jpg", "2"), ("b/0.jpg", "3"), ("b/1.jpg", "4")] and "no file train2014/lone.jpg" in bad[0]


def test_a_file_of_another_folder_stands_in_for_none_that_is_missing(tmp_path):
    names = write_same_names(tmp_path)
    (tmp_path / "in" / "a" / "0.jpg").unlink()
    for number, name in enumerate(names):
        write_official(tmp_path / f"one{number}.json", {number: name.replace("/", "\\")}, {number: [name]})
    found, bad = pairs(everything(coco.Coco(f"{tmp_path}/one0.json", f"{tmp_path}/in")))
    assert not found and f"no file a/0.jpg in {tmp_path}/in; in another folder there is {tmp_path}/in/b/0.jpg" in bad[0]
    # Whether a last part is the only one is asked of all files of captions together.
    found, bad = pairs(everything(coco.Coco(f"{tmp_path}/one*.json", f"{tmp_path}/in/b")))
    assert found == [(name, name) for name in names[2:]] and len(bad) == 2


def test_folders_to_look_in_are_there(tmp_path):
    (tmp_path / "one, two").mkdir()
    (tmp_path / "one, two" / "a.jpg").write_bytes(b"a")
    assert Lookup(f"{tmp_path}/one, two", "images").find("x/a.jpg", {"a.jpg"}) == f"{tmp_path}/one, two/a.jpg"
    with pytest.raises(ValueError, match="no file x/a.jpg in"):
        Lookup(f"{tmp_path}/one, two", "images").find("x/a.jpg", ())
    with pytest.raises(ValueError, match="--images=.*: .*absent is no folder with pictures"):
        Lookup(f"{tmp_path},{tmp_path}/absent", "images")


@pytest.mark.parametrize("form", ["official", "karpathy"])
def test_empty_captions_are_left_out_and_their_picture_stays(tmp_path, form):
    write_coco(tmp_path)
    data = json.loads((tmp_path / f"{form}.json").read_text())
    given = {1: ["one", None, " "], 2: [None, "", "\n"], 3: [None]}
    if form == "official":
        data["annotations"] = [{"image_id": n, "caption": c} for n, texts in given.items() for c in texts]
    else:
        for picture in data["images"]:
            picture["sentences"] = [{"raw": text} for text in given[picture["cocoid"]]]
    (tmp_path / "x.json").write_text(json.dumps(data))
    found, bad = split(everything(coco.Coco(f"{tmp_path}/x.json", f"{tmp_path}/val")))
    assert [(item.key, item.texts, item.num_empty) for item in found] == [("1", ("one",), 2), ("2", (), 3)]
    found, bad = split(everything(coco.Coco(f"{tmp_path}/x.json")))
    assert [item.key for item in found] == ["1"] and [message.rpartition(": ")[2] for message in bad] == [
        "empty text"
    ] * 2


def test_entries_that_are_damaged_are_named_one_by_one(tmp_path):
    write_coco(tmp_path)
    data = json.loads((tmp_path / "official.json").read_text())
    data["images"] += [{"id": None, "file_name": "0001.jpg"}, {"id": 5, "file_name": None}, {"id": 6}]
    data["annotations"] = [{"image_id": 1, "caption": "one"}, {"image_id": 1, "caption": 7}, {"image_id": 2},
                           {"image_id": 99, "caption": "x"}, {"caption": "lost"},
                           {"image_id": "2", "caption": "as text"},
                           {"image_id": 2.0, "caption": "as fraction"}]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(data))
    found, bad = split(everything(coco.Coco(f"{tmp_path}/x.json", f"{tmp_path}/val")))
    assert [(item.key, item.texts) for item in found] == [("1", ("one",)), ("2", ("as text", "as fraction"))]
    for message, cause in zip(bad, (
        "annotation 1: the caption 7 is no text", "picture 3: no file 0003.jpg", "picture 5: the json names no file",
        "picture 6: the json names no file", "image 3: the id None", "annotation 2: no 'caption'",
        "annotation 3: its picture 99 is not among", "annotation 4: its picture None is not among",
    ), strict=True):  # fmt: skip
        assert message.startswith(f"{tmp_path}/x.json: {cause}")
    sentences = [{"raw": "good"}, {"tokens": []}, {"raw": 3}]
    data = {"images": [{"cocoid": 1, "filename": "0001.jpg", "sentences": sentences}, {"cocoid": 2}, {"sentences": []}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    pictures, bad = coco_captions.read(f"{tmp_path}/x.json")
    assert [(picture.key, picture.texts, len(picture.bad)) for picture in pictures] == [("1", ["good"], 2)]
    assert [str(item).split(": ")[1] for item in bad] == ["image 1", "image 2"]
    data = {"images": [{"id": 1, "file_name": "0001.jpg"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="neither captions of COCO nor Karpathy's: .*no annotation has a 'caption'"):
        list(everything(coco.Coco(f"{tmp_path}/x.json")))


def test_a_list_of_pictures_as_people_have_them(tmp_path):
    names = {1: "a/0.jpg", 2: "a/1.jpg", 3: "b/0.jpg", 4: "my photo 7.jpg", 5: "COCO_val2014_000000000005.jpg"}
    write_official(tmp_path / "c.json", names, {n: [name] for n, name in names.items()})

    def taken(*lines):
        (tmp_path / "list").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8", newline="")
        found, bad = split(everything(coco.Coco(f"{tmp_path}/c.json", image_list=f"{tmp_path}/list")))
        return [item.key for item in found], bad

    assert taken("a/0.jpg", "", "x/b/0.jpg 12") == (["1", "3"], [])
    assert taken("my photo 7.jpg", "val2014/COCO_val2014_000000000005.jpg 5", "1.jpg") == (["2", "4", "5"], [])
    assert taken("my photo 7.jpg 4") == (["4"], [])
    found, bad = taken("1.jpg", "my", "b/1.jpg")
    assert found == ["2"] and [message.partition("list:")[2] for message in bad] == [
        f"2: no picture my in {tmp_path}/c.json", f"3: no picture b/1.jpg in {tmp_path}/c.json"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="list:1: 0.jpg may be a/0.jpg or b/0.jpg"):
        taken("0.jpg")
