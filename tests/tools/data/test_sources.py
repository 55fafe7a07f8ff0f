"""What each source lists, and how damage and mistakes are named: lines, texts, folders, COCO, tables."""

import csv
import gzip
import hashlib
import json
import re

import numpy as np
import pytest

from tools.data.sources import caption_file, folder, lines, names, table, text
from tools.data.sources.item import MAX_TEXT, BadItem, Blob, Item, Passed, everything


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
    found, bad = split(everything(text.Text(f"{tmp_path}/*")))
    assert [item.key for item in found] == ["a.txt:1", "a.txt:4"] and not bad
    assert found[0].load_texts() == (["one \u00e9 word"], 0) and found[0].image is None
    with pytest.raises(ValueError, match="not UTF-8"):
        found[1].load_texts()


def test_texts_of_a_folder(tmp_path):
    root = tmp_path / "my [old] texts, 1"
    (root / "a").mkdir(parents=True)
    (root / "b.TXT").write_text("one\ntwo\n")
    (root / "a" / "b.txt.gz").write_bytes(gzip.compress(b"three\n"))
    (root / ".hidden.txt").write_text("hidden")
    (root / "notes.md").write_text("no text")
    for given in (root, f"{root}/"):
        found, bad = split(everything(text.Text(str(given))))
        assert [(item.key, item.texts[0]) for item in found] == [
            ("a/b.txt.gz:1", "three"), ("b.TXT:1", "one"), ("b.TXT:2", "two"),
        ] and not bad  # fmt: skip
    (root / "a" / "b.txt.gz").unlink()
    (root / "b.TXT").unlink()
    with pytest.raises(ValueError, match="no .txt, .txt.gz or .txt.zst in this folder, but 1 other files"):
        list(everything(text.Text(str(root))))


# ---------------------------------------------------------------------------------------------- folder


def test_a_folder_gives_pictures_with_the_text_beside_them(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/x.JPG", "a.png", "b.webp", "lone.txt", "notes.md", ".hidden.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b" / "x.txt").write_text(" a  red\nhouse ")
    found, _ = split(everything(folder.Folder(f"{tmp_path}/")))
    assert [item.key for item in found] == ["a.png", "b.webp", "b/x.JPG"]
    assert [item.load_texts() for item in found] == [([], 0), ([], 0), (["a red house"], 0)]
    assert found[2].image.read(100) == b"b/x.JPG"
    with pytest.raises(ValueError, match="above the limit of 3 bytes"):
        found[2].image.read(3)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.txt").write_text("no picture")
    with pytest.raises(ValueError, match="no pictures"):
        list(everything(folder.Folder(f"{tmp_path}/c")))


def caption_files(root):
    """The same captions in every form: two of `b/x.jpg`, one empty and one of `a.png`, none of `c.png`."""
    rows = [("b/x.jpg", 'a "red", house'), ("a.png", "grün"), ("b/x.jpg", "one more"), ("a.png", "")]
    columns = ("file_name", "text")
    for name, options in (("x.csv", {}), ("x.tsv", dict(delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None))):
        with open(root / name, "w", newline="") as file:
            csv.writer(file, **options).writerows([columns, *rows])
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    (root / "x.jsonl").write_text("\n".join(map(json.dumps, objects)))
    (root / "x.jsonl.gz").write_bytes(gzip.compress((root / "x.jsonl").read_bytes()))
    (root / "list.json").write_text(json.dumps(objects))
    texts = {name: [text for other, text in rows if other == name] for name, _ in rows}
    (root / "dict.json").write_text(json.dumps(texts))
    (root / "coco.json").write_text(json.dumps({
        "images": [{"id": n, "file_name": name} for n, name in enumerate(texts)],
        "annotations": [{"image_id": n, "caption": text} for n, found in enumerate(texts.values()) for text in found],
    }))  # fmt: skip
    return [root / name for name in ("x.csv", "x.tsv", "x.jsonl", "x.jsonl.gz", "list.json", "dict.json", "coco.json")]


@pytest.mark.parametrize("inside", [True, False])
def test_captions_of_a_folder_in_a_file_of_any_form(tmp_path, inside):
    """It lies in the folder or elsewhere, under any name; a text beside the picture counts, too."""
    root, elsewhere = tmp_path / "in [1], b", tmp_path / "elsewhere"
    write_files(root, "a.png", "b/x.jpg", "b/x.txt", "c.png", "d.md")
    elsewhere.mkdir()
    for path in caption_files(root if inside else elsewhere):
        items = list(everything(folder.Folder(str(root), captions=str(path))))
        found, bad = split(items)
        assert not bad and [(item.key, item.load_texts()[0]) for item in found] == [
            ("a.png", ["grün"]), ("b/x.jpg", ["b/x.txt", 'a "red", house', "one more"]), ("c.png", []),
        ], path  # fmt: skip
        assert sum(item.num_empty for item in found) == 1
        assert str(path) not in dict(passed(items)), "it is no stray file"


def test_mistakes_in_a_file_of_captions(tmp_path):
    root = tmp_path / "in"
    write_files(root, "a.png", "b/a.png", "c.tif")

    def read(data, name="x.csv", **options):
        (tmp_path / name).write_text(data)
        found, bad = split(everything(folder.Folder(str(root), captions=str(tmp_path / name), **options)))
        return [(item.key, item.texts) for item in found], [line.rpartition(f"{name}:")[2] for line in bad]

    found, (kind, *bad) = read("image,caption\nnone.png,a\na.png,b\nb.png,c\nc.tif,d\nc.tif\n")
    assert found == [("a.png", ("b",)), ("b/a.png", ())]
    assert kind.startswith(f"{root}/c.tif: pictures of this kind are not read") and kind.endswith("a text for it")
    where = f"in {root}"
    assert bad == [
        "6: 1 cells, must be 2 (image, caption)",
        f"2: no file none.png {where}",
        f"4: no file b.png {where}",
    ]
    assert read('[{"image": "a.png", "caption": "x"}, {"image": 3, "caption": "x"}, 4]', "x.json")[1] == [
        " entry 1: 'image' must be the name of a picture, 'caption' a text or a list of texts",
        " entry 2: not a JSON object",
    ]
    for image in caption_file.IMAGE_COLUMNS:
        for caption in caption_file.TEXT_COLUMNS:
            assert read(f"{caption},x,{image}\nred,y,a.png\n")[0] == [("a.png", ("red",)), ("b/a.png", ())]
    title = "picture,title,caption,text\na.png,a,b,c\n"
    named = dict(image_column="picture", text_column="title")
    assert read(title, **named)[0] == [("a.png", ("a",)), ("b/a.png", ())]
    for data, name, options, message in (
        (title, "x.csv", {}, "x.csv: name a column by --image_column; there are 'picture', 'title', 'caption', 'text'"),
        (title, "x.csv", dict(image_column="picture"), "name a column by --text_column; there are"),
        (title, "x.csv", named | dict(text_column="t"), "no column 't'; there are 'picture'"),
        ("", "x.csv", {}, "name a column by --image_column; there are none"),
        ("caption,image,caption\na,a.png,b\n", "x.csv", {}, "x.csv: two columns are called 'caption'"),
        ("{", "x.json", {}, "x.json: not JSON"),
        ('{"images": [{}]}', "x.json", {}, "x.json: neither captions of COCO nor Karpathy's"),
        ("a.png\tb", "x.txt", {}, "x.txt: must be a .csv, .tsv, .jsonl or .json"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(data, name, **options)
    with pytest.raises(ValueError, match=r"--captions=none.csv: no such file"):
        list(everything(folder.Folder(str(root), captions="none.csv")))


def write_files(root, *given):
    for name in given:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def passed(items):
    return sorted((item.place, item.kind) for item in items if isinstance(item, Passed))


def test_suffixes_count_in_any_case(tmp_path):
    write_files(tmp_path, "a.JPG", "a.TXT", "b.Jpeg", "b.Txt", "c.JFIF", "c.txt", "d.jpg", "D.txt")
    found, bad = split(everything(folder.Folder(str(tmp_path))))
    assert [(item.key, item.load_texts()[0]) for item in found] == [
        ("a.JPG", ["a.TXT"]), ("b.Jpeg", ["b.Txt"]), ("c.JFIF", ["c.txt"]), ("d.jpg", []),
    ] and not bad  # fmt: skip
    assert passed(everything(folder.Folder(str(tmp_path)))) == [(f"{tmp_path}/D.txt", ".txt without a picture")]
    write_files(tmp_path, "a.txt")
    found, bad = split(everything(folder.Folder(str(tmp_path))))
    assert len(bad) == 1 and "a.JPG: two texts beside it" in bad[0] and len(found) == 3


def test_pictures_that_are_not_read_are_counted_and_with_a_text_damage(tmp_path):
    write_files(tmp_path, "a.tif", "b.HEIC", "b.txt", "c.jpg", "c.tif", "c.txt", "notes.md", "lone.txt", "LICENSE")
    items = list(everything(folder.Folder(str(tmp_path))))
    found, bad = split(items)
    assert [item.key for item in found] == ["c.jpg"]
    assert len(bad) == 1 and f"{tmp_path}/b.HEIC: pictures of this kind are not read, only .jpg" in bad[0]
    assert [(place.rpartition("/")[2], kind) for place, kind in passed(items)] == [
        ("LICENSE", "without a suffix"), ("a.tif", ".tif"), ("b.txt", ".txt without a picture"), ("c.tif", ".tif"),
        ("lone.txt", ".txt without a picture"), ("notes.md", ".md"),
    ]  # fmt: skip
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(ValueError, match=r"no pictures \(.jpg, .*\), but .heic, .md, .tif, .txt, files without one"):
        list(everything(folder.Folder(str(tmp_path))))


def test_what_a_file_is_by_its_name():
    assert names.split("a.b/c.D.JPG") == ("a.b/c.D", ".jpg") and names.split("a.b/c") == ("a.b/c", "")
    for name in ("._a.jpg", "a/.DS_Store", "./.x/a.jpg", "__MACOSX/a/b.jpg", "thumbs.DB", "__key__", "a/__url__.txt"):
        assert names.is_leftover(name), name
    for name in ("a.jpg", "./a.jpg", "../a.jpg", "a..jpg", "__a.jpg", "b/__MACOSX.jpg", ""):
        assert not names.is_leftover(name), name
    assert names.is_picture(".jfif") and not names.is_picture(".tif") and names.is_other_picture(".tif")


def test_leftovers_of_systems_are_nothing(tmp_path):
    write_files(tmp_path, "a.jpg", "._a.jpg", ".DS_Store", "__MACOSX/a.jpg", ".cache/x.jpg", "Thumbs.db", "sub/._b.jpg")
    items = list(everything(folder.Folder(str(tmp_path))))
    assert [item.key for item in items] == ["a.jpg"]


def test_a_folder_may_have_any_name(tmp_path):
    for name in ("br [2021]", "one, two", "*"):
        write_files(tmp_path, f"{name}/a.jpg", f"{name}/a.txt")
        (item,) = everything(folder.Folder(f"{tmp_path}/{name}"))
        assert item.key == "a.jpg" and item.load_texts() == ([f"{name}/a.txt"], 0)


# ---------------------------------------------------------------------------------------------- tables


def test_jsonl_rows(tmp_path):
    rows = [{"caption": "one", "image": "p/1.jpg", "id": 7}, {"caption": ["a", "b"], "image": "p/2.jpg", "id": 8},
            {"caption": "alone", "image": "", "id": 9}, {"caption": None, "image": "p/3.jpg", "id": 10}]  # fmt: skip
    bad_rows = ['{"caption": "x", "id": 1}', "[1]", "{", '{"caption": 3, "image": "a", "id": 1}',
                '{"caption": "", "image": "", "id": 1}', '{"caption": "x", "image": "../x", "id": 1}',
                '{"caption": "x", "image": "/etc/x", "id": 1}']  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, rows), "", *bad_rows]))
    found, bad = split(everything(table.Jsonl(f"{tmp_path}/a.jsonl")))
    assert [item.key for item in found] == ["p/1.jpg", "p/2.jpg", "a.jsonl:3", "p/3.jpg"]
    assert [list(item.texts) for item in found] == [["one"], ["a", "b"], ["alone"], []]
    assert [item.image for item in found] == [Blob(f"{tmp_path}/p/{n}.jpg") if n else None for n in (1, 2, 0, 3)]
    causes = ("no column 'image'", "not a JSON object", "not JSON", "must be a string", "neither picture nor text",
              "'../x' lies outside", "'/etc/x' lies outside")  # fmt: skip
    for number, (message, cause) in enumerate(zip(bad, causes, strict=True), 6):
        assert message.startswith(f"{tmp_path}/a.jsonl:{number}: ") and cause in message
    found, _ = split(everything(table.Jsonl(f"{tmp_path}/a.jsonl", id_column="id")))
    assert [item.key for item in found] == ["7", "8", "9", "10"]
    lines_as_ids = split(everything(table.Jsonl(f"{tmp_path}/a.jsonl", line_ids=True)))[0]
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
    found, bad = split(everything(table.Csv(f"{tmp_path}/a.csv", image_root="/pictures")))
    assert [(item.image.path, *item.texts) for item in found] == [(f"/pictures/{a}", b) for a, b, _ in rows]
    assert len(bad) == 1 and "1 cells, must be 3 (image, caption, rest)" in bad[0]


@pytest.mark.parametrize("names", ["path", "basename", "md5", "sha256"])
def test_tsv_in_the_shape_of_cc3m(tmp_path, names):
    urls = [f"http://host.org/d/p{n}.jpg?q={n}" for n in range(3)]
    (tmp_path / "a.tsv").write_text("".join(f'a "quote {n}\t{url}\n' for n, url in enumerate(urls)))
    source = table.Tsv(f"{tmp_path}/a.tsv", image_column="url", image_root="in", url_names=names, columns="caption,url")
    found, bad = split(everything(source))
    expected = {"path": [f"in/host.org/d/p{n}.jpg" for n in range(3)], "basename": [f"in/p{n}.jpg" for n in range(3)]}
    for kind in ("md5", "sha256"):
        expected[kind] = [f"in/{getattr(hashlib, kind)(url.encode()).hexdigest()}.jpg" for url in urls]
    assert [item.image.path for item in found] == expected[names] and not bad
    assert [item.texts for item in found] == [(f'a "quote {n}',) for n in range(3)]
    with pytest.raises(ValueError, match="no file in/"):
        found[0].image.read(10)


def test_damaged_cells_are_named_and_the_next_row_is_read(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"caption\timage\nok\t1\n" + b"x" * (MAX_TEXT + 9) + b"\t2\n\xff\t3\nok\t4\n")
    found, bad = split(everything(table.Tsv(f"{tmp_path}/a.tsv")))
    assert [item.key for item in found] == ["1", "3", "4"] and len(bad) == 1 and ":3: line above the limit" in bad[0]
    with pytest.raises(ValueError, match="not UTF-8"):
        found[1].load_texts()


def test_a_quote_that_does_not_close_is_damage_with_its_line(tmp_path):
    good = [f"{n}.jpg,text {n}" for n in range(3)]
    for lost, rest, cause in (
        (['x.jpg,"a 5"" screen', "y.jpg,blue", "z.jpg,red"], [], "the file ends inside a cell in quotes: lines 5 to 7"),
        (['x.jpg,"ends here'], [], "the file ends inside a cell in quotes: the row is lost"),
        (['x.jpg,"a 5"" screen', "y.jpg,blue", 'z.jpg,"red"'], ["w.jpg,last"], "lines 5 to 7 are lost"),
        (['x.jpg,"5" screen'], ["w.jpg,last"], "the row is lost"),
    ):
        (tmp_path / "a.csv").write_text("\n".join(["image,caption", *good, *lost, *rest]) + "\n")
        found, bad = split(everything(table.Csv(f"{tmp_path}/a.csv")))
        assert [item.key for item in found] == [line.partition(",")[0] for line in good + rest]
        assert len(bad) == 1 and bad[0].startswith(f"{tmp_path}/a.csv:5: ") and cause in bad[0], bad
    (tmp_path / "a.csv").write_text('image,caption\na.jpg,"' + "x,y\n" * (MAX_TEXT // 4) + "\n")
    found, bad = split(everything(table.Csv(f"{tmp_path}/a.csv")))
    assert bad[0].startswith(f"{tmp_path}/a.csv:2: field larger than field limit") and "are lost" in bad[0]


def test_empty_and_null_texts_of_a_row_are_counted(tmp_path):
    rows = [{"image": "1.jpg", "caption": ["a", "", None, " \n"]}, {"image": "2.jpg", "caption": None},
            {"image": "3.jpg", "caption": []}, {"image": "4.jpg", "caption": 0},
            {"image": "", "caption": [""]}]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found, bad = split(everything(table.Jsonl(f"{tmp_path}/a.jsonl")))
    assert [(item.key, item.texts, item.num_empty) for item in found] == [
        ("1.jpg", ("a",), 3), ("2.jpg", (), 1), ("3.jpg", (), 0),
    ]  # fmt: skip
    assert len(bad) == 2 and ":4: column 'caption' holds int: must be a string" in bad[0] and ":5: neither" in bad[1]


def test_lines_of_a_short_file(tmp_path):
    (tmp_path / "a").write_bytes("\ufeff one\u2028two \r\n\r\n three\rfour\x0bfive".encode())
    assert lines.read(str(tmp_path / "a")) == [(1, "one\u2028two"), (3, "three"), (4, "four\x0bfive")]
    (tmp_path / "a").write_bytes(b"one\n\xff")
    with pytest.raises(ValueError, match="a:2: not UTF-8"):
        lines.read(str(tmp_path / "a"))
