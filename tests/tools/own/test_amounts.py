"""tools.own.amounts: counts, what a fingerprint notices, and what is refused."""

import gzip
import os
import shutil

import pytest

from tools.own import amounts


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data.encode())


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "my [old] pictures, 1"
    write(root, {"a.jpg": "1", "a.txt": "one", "b/c.png": "22", "b/c.txt": "two", "b/d.webp": "333", "lone.txt": "x"})
    return root


def test_pictures_are_counted_and_every_change_shows(root):
    found = amounts.of_pictures(str(root), "")
    assert (found.pictures, found.pairs) == (3, 2) and str(found).startswith("3 pictures, 2 of them with captions (")
    shutil.copytree(root, root.parent / "copy")
    os.utime(root / "a.jpg", (0, 0))
    assert amounts.of_pictures(str(root), "") == found == amounts.of_pictures(str(root.parent / "copy"), "")
    seen = {found.fingerprint}
    for change in (
        {"a.txt": "eno"},
        {"a.jpg": "12"},
        {"b/d.txt": "new"},
        {"e.gif": "4"},
        {"captions.csv": "image,text\na.jpg,z"},
    ):
        write(root, change)
        captions = amounts.find_captions(str(root))
        seen.add(amounts.of_pictures(str(root), captions).fingerprint)
    (root / "e.gif").rename(root / "f.gif")
    seen.add(amounts.of_pictures(str(root), captions).fingerprint)
    (root / "captions.csv").write_text("image,text\na.jpg,y")
    seen.add(amounts.of_pictures(str(root), captions).fingerprint)
    assert len(seen) == 8


def test_pictures_without_any_caption_are_refused(root):
    for path in root.rglob("*.txt"):
        path.unlink()
    message = r"pictures, 1: 3 pictures, none with a caption: some dozens need one, in x.txt beside x.jpg or in a file"
    with pytest.raises(ValueError, match=message):
        amounts.of_pictures(str(root), "")
    (root / "captions.jsonl").write_text('{"image": "a.jpg", "caption": "one"}')
    assert amounts.of_pictures(str(root), str(root / "captions.jsonl")).pairs == 1


def test_a_folder_without_pictures_is_named_as_it_was_given(tmp_path):
    (tmp_path / "a.md").write_text("x")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: no pictures .+, but .md$"):
        amounts.of_pictures(str(tmp_path), "")


def test_a_file_of_captions_is_found_by_its_name(root):
    assert amounts.find_captions(str(root)) == ""
    write(root, {"b/captions.csv": "not at the top", "captions.md": "of no kind", "Metadata.JSONL": "this"})
    assert amounts.find_captions(str(root)) == str(root / "Metadata.JSONL")
    write(root, {"captions.json": "and this"})
    with pytest.raises(
        ValueError, match="Metadata.JSONL and captions.json may be its captions: name one, --captions=FILE"
    ):
        amounts.find_captions(str(root))


def test_files_of_texts_are_told_apart(root):
    write(root.parent, {"texts/a.txt": "one\ntwo\n", "texts/b/c.txt": "three\n"})
    write(root, {"sub/a.md": "no text"})
    (root.parent / "packed.txt.gz").write_bytes(gzip.compress(b"one\n"))
    folder = str(root.parent / "texts")
    found = amounts.of_texts(folder)
    assert found.startswith("2 files of 14 bytes (fingerprint ")
    write(root.parent, {"texts/a.txt": "eno\ntwo\n"})
    assert amounts.of_texts(folder) != found
    assert amounts.of_texts(f"{folder}/*.txt").startswith("one file of 8 bytes")
    assert amounts.of_texts(f"{folder}/a.txt,{root.parent}/packed.txt.gz").startswith("2 files of ")
    with pytest.raises(ValueError, match="^/.*sub: no .txt, .txt.gz or .txt.zst in this folder, but 1 other files"):
        amounts.of_texts(str(root / "sub"))
    with pytest.raises(ValueError, match="no file matches"):
        amounts.of_texts(f"{folder}/*.gz")
