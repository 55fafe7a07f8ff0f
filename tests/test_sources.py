"""What each source lists, and how damage and mistakes are named: lines, texts, folders, COCO, tables."""

import csv
import gzip
import hashlib
import json
import re

import numpy as np
import pytest

from tools.sources import coco, folder, lines, table, text
from tools.sources.item import MAX_TEXT, BadItem, Blob, Item


def split(items):
    """(Items, messages of BadItems)."""
    items = list(items)
    return [i for i in items if isinstance(i, Item)], [str(i) for i in items if isinstance(i, BadItem)]


# ---------------------------------------------------------------------------------------------- lines and texts


def packed(folder, data):
    """The same bytes plain, as gzip, and as two frames of zstd."""
    (folder / "a.txt").write_bytes(data)
    (folder / "a.gz").write_bytes(gzip.compress(data))
    paths = [folder / "a.txt", folder / "a.gz"]
    if lines.zstandard:
        half, pack = len(data) // 2, lines.zstandard.ZstdCompressor().compress
        (folder / "a.zst").write_bytes(pack(data[:half]) + pack(data[half:]))
        paths.append(folder / "a.zst")
    return paths


def test_lines_are_the_same_however_packed(tmp_path):
    rng = np.random.default_rng()
    want = [bytes(rng.integers(32, 127, rng.integers(0, 200), dtype=np.uint8)) for _ in range(500)]
    for path in packed(tmp_path, b"\r\n".join(want)):
        assert list(lines.numbered(str(path))) == list(enumerate(want, 1)), path


def test_a_file_that_breaks_off_is_named(tmp_path):
    want = [b"%d %d" % (n, n * 7919 % 104729) for n in range(20000)]
    for path in packed(tmp_path, b"\n".join(want))[1:]:
        whole = path.read_bytes()
        for cut in (len(whole) - 1, len(whole) * 3 // 4):
            path.write_bytes(whole[:cut])
            *good, (number, bad) = lines.numbered(str(path))
            assert isinstance(bad, BadItem) and number == len(good) + 1
            assert re.match(re.escape(f"{path}:{number}: the packed file is damaged here"), str(bad))
            assert [line for _, line in good[:-1]] == want[: len(good) - 1]


def test_a_line_without_end_is_not_held(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"first\n" + b"x" * (3 * MAX_TEXT) + b"\nlast\n")
    found = list(lines.numbered(str(tmp_path / "a.txt")))
    assert found[0] == (1, b"first") and found[2] == (3, b"last") and len(found) == 3
    assert isinstance(found[1][1], BadItem) and "a.txt:2: line above the limit" in str(found[1][1])


def test_texts_are_lines_with_their_place_as_id(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone  \xc3\xa9 word\n \n\ntwo\xff\n")
    found, bad = split(text.Text(f"{tmp_path}/*").items())
    assert [item.key for item in found] == ["a.txt:1", "a.txt:4"] and not bad
    assert found[0].load_texts() == ["one \u00e9 word"] and found[0].image is None
    with pytest.raises(ValueError, match="not UTF-8"):
        found[1].load_texts()


# ---------------------------------------------------------------------------------------------- folder


def test_a_folder_gives_pictures_with_the_text_beside_them(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/x.JPG", "a.png", "b.webp", "lone.txt", "notes.md", ".hidden.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b" / "x.txt").write_text(" a  red\nhouse ")
    found, _ = split(folder.Folder(f"{tmp_path}/").items())
    assert [item.key for item in found] == ["a.png", "b.webp", "b/x.JPG"]
    assert [item.load_texts() for item in found] == [[], [], ["a red house"]]
    assert found[2].image.read(100) == b"b/x.JPG"
    with pytest.raises(ValueError, match="above the limit of 3 bytes"):
        found[2].image.read(3)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no pictures"):
        list(folder.Folder(f"{tmp_path}/c").items())


# ---------------------------------------------------------------------------------------------- COCO


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
    found, bad = split(coco.Coco(f"{tmp_path}/{form}.json", f"{tmp_path}/val").items())
    assert {item.key: item.load_texts() for item in found} == {"1": captions[1], "2": captions[2]}
    assert [item.image.read(9) for item in found] == [b"1", b"2"]
    assert len(bad) == 1 and "picture 3: no file 0003.jpg" in bad[0]
    found, bad = split(coco.Coco(f"{tmp_path}/{form}.json").items())
    assert [item.key for item in found] == ["1", "2", "3"] and not bad and {item.image for item in found} == {None}
    (tmp_path / "list").write_text("val2014/0002.jpg 2\n")
    found, bad = split(coco.Coco(f"{tmp_path}/{form}.json", f"{tmp_path}/val", "", f"{tmp_path}/list").items())
    assert [item.key for item in found] == ["2"] and not bad


def test_coco_splits_of_karpathy(tmp_path):
    write_coco(tmp_path)
    found, _ = split(coco.Coco(f"{tmp_path}/karpathy.json", "", "train, restval").items())
    assert [item.key for item in found] == ["1", "2"]
    with pytest.raises(ValueError, match="--karpathy_splits=val: the splits of .* are: restval, test, train"):
        list(coco.Coco(f"{tmp_path}/karpathy.json", "", "val").items())
    with pytest.raises(ValueError, match="only Karpathy's json has them"):
        list(coco.Coco(f"{tmp_path}/official.json", "", "val").items())
    for content in ("[]", "{", '{"images": [{}]}', '{"images": [], "annotations": [{"image_id": 1}]}', "[" * 99999):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match="x.json: neither captions of COCO nor Karpathy's"):
            list(coco.Coco(f"{tmp_path}/x.json").items())
    with pytest.raises(ValueError, match="is no folder with pictures"):
        list(coco.Coco(f"{tmp_path}/karpathy.json", f"{tmp_path}/none").items())


# ---------------------------------------------------------------------------------------------- tables


def test_jsonl_rows(tmp_path):
    rows = [{"caption": "one", "image": "p/1.jpg", "id": 7}, {"caption": ["a", "b"], "image": "p/2.jpg", "id": 8},
            {"caption": "alone", "image": "", "id": 9}, {"caption": None, "image": "p/3.jpg", "id": 10}]  # fmt: skip
    bad_rows = ['{"caption": "x", "id": 1}', "[1]", "{", '{"caption": 3, "image": "a", "id": 1}',
                '{"caption": "", "image": "", "id": 1}', '{"caption": "x", "image": "../x", "id": 1}',
                '{"caption": "x", "image": "/etc/x", "id": 1}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, rows), "", *bad_rows]))
    found, bad = split(table.Jsonl(f"{tmp_path}/a.jsonl").items())
    assert [item.key for item in found] == ["p/1.jpg", "p/2.jpg", "a.jsonl:3", "p/3.jpg"]
    assert [list(item.texts) for item in found] == [["one"], ["a", "b"], ["alone"], []]
    assert [item.image for item in found] == [Blob(f"{tmp_path}/p/{n}.jpg") if n else None for n in (1, 2, 0, 3)]
    causes = ("no column 'image'", "not a JSON object", "not JSON", "not a string", "neither picture nor text",
              "'../x' lies outside", "'/etc/x' lies outside")  # fmt: skip
    for number, (message, cause) in enumerate(zip(bad, causes, strict=True), 6):
        assert message.startswith(f"{tmp_path}/a.jsonl:{number}: ") and cause in message
    found, _ = split(table.Jsonl(f"{tmp_path}/a.jsonl", id_column="id").items())
    assert [item.key for item in found] == ["7", "8", "9", "10"]
    lines_as_ids = split(table.Jsonl(f"{tmp_path}/a.jsonl", line_ids=True).items())[0]
    assert [item.key for item in lines_as_ids] == [f"a.jsonl:{n}" for n in (1, 2, 3, 4)]
    assert [item.unit for item in found] == ["p/1.jpg", "p/2.jpg", "", "p/3.jpg"]


def test_csv_as_the_csv_module_writes_it(tmp_path):
    rng, rows = np.random.default_rng(), []
    for number in range(50):
        rows.append((f"{number}.jpg", f'a "word", and\nmore {rng.integers(99)}', "x" * int(rng.integers(9))))
    with open(tmp_path / "a.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "rest"), *rows])
    with open(tmp_path / "a.csv", "a") as file:
        file.write("lone\n")
    found, bad = split(table.Csv(f"{tmp_path}/a.csv", image_root="/pictures").items())
    assert [(item.image.path, *item.texts) for item in found] == [(f"/pictures/{a}", b) for a, b, _ in rows]
    assert len(bad) == 1 and "1 cells, must be 3 (image, caption, rest)" in bad[0]


@pytest.mark.parametrize("names", ["path", "basename", "md5", "sha256"])
def test_tsv_in_the_shape_of_cc3m(tmp_path, names):
    urls = [f"http://host.org/d/p{n}.jpg?q={n}" for n in range(3)]
    (tmp_path / "a.tsv").write_text("".join(f'a "quote {n}\t{url}\n' for n, url in enumerate(urls)))
    source = table.Tsv(f"{tmp_path}/a.tsv", image_column="url", image_root="in", url_names=names, columns="caption,url")
    found, bad = split(source.items())
    expected = {"path": [f"in/host.org/d/p{n}.jpg" for n in range(3)], "basename": [f"in/p{n}.jpg" for n in range(3)]}
    for kind in ("md5", "sha256"):
        expected[kind] = [f"in/{getattr(hashlib, kind)(url.encode()).hexdigest()}.jpg" for url in urls]
    assert [item.image.path for item in found] == expected[names] and not bad
    assert [item.texts for item in found] == [(f'a "quote {n}',) for n in range(3)]
    with pytest.raises(ValueError, match="no file in/"):
        found[0].image.read(10)


def test_damaged_cells_are_named_and_the_next_row_is_read(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"caption\timage\nok\t1\n" + b"x" * (MAX_TEXT + 9) + b"\t2\n\xff\t3\nok\t4\n")
    found, bad = split(table.Tsv(f"{tmp_path}/a.tsv").items())
    assert [item.key for item in found] == ["1", "3", "4"] and len(bad) == 1 and ":3: line above the limit" in bad[0]
    with pytest.raises(ValueError, match="not UTF-8"):
        found[1].load_texts()
