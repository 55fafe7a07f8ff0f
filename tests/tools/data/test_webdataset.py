"""Tars as img2dataset and webdataset write them, as people pack them, and hostile ones: nothing is unpacked."""

import bz2
import gzip
import io
import json
import lzma
import tarfile

import numpy as np
import pytest

from tools.data.sources import tar
from tools.data.sources.item import MAX_TEXT, BadItem, Item, Passed, everything
from tools.data.sources.webdataset import Webdataset


def write_tar(path, members, mode="w", **options):
    """members: (name, bytes) or TarInfo."""
    with tarfile.open(path, mode, **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mtime = len(member[1]), 1700000000.25  # a fraction takes a PAX header, as webdataset's do
            tar.addfile(info, io.BytesIO(member[1]))


def listed(path):
    items = list(everything(Webdataset(str(path))))
    return [i for i in items if isinstance(i, Item)], [str(i) for i in items if isinstance(i, BadItem)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_key_become_an_item(tmp_path, form):
    rng = np.random.default_rng()
    pictures, members = {f"{n:09d}": rng.bytes(int(rng.integers(1, 5000))) for n in range(20)}, []
    for key, data in pictures.items():
        members += [(f"{key}.jpg", data), (f"{key}.txt", f"text {key}".encode())]
        members.append((f"{key}.json", json.dumps({"caption": "unused", "key": key}).encode()))
    members += [("d/x.json", b'{"caption": "from json"}'), ("d/x.PNG", b"picture"), ("d/y.webp", b"alone")]
    write_tar(tmp_path / "00007.tar", members, format=form)
    found, bad = listed(tmp_path / "00007.tar")
    assert not bad and [item.key for item in found] == [f"00007/{key}" for key in (*pictures, "d/x", "d/y")]
    for item, (key, data) in zip(found, pictures.items(), strict=False):
        assert item.image.read(10**6) == data and item.load_texts() == ([f"text {key}"], 0)
    assert found[-2].image.read(99) == b"picture" and found[-2].load_texts() == (["from json"], 0)
    assert found[-1].image.read(99) == b"alone" and found[-1].texts == ()


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_hostile_members_are_refused_and_touch_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    hostile = [("../out.jpg", b"x"), ("/tmp/abs.jpg", b"x"), ("a/../../b.jpg", b"x"), ("c\\..\\d.jpg", b"x"),
               member("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), member("hard.jpg", tarfile.LNKTYPE, "/etc/passwd"),
               member("pipe.jpg", tarfile.FIFOTYPE), ("huge.txt", b"x" * (MAX_TEXT + 1)), ("only.json", b"{}"[:1]),
               ("twice.jpg", b"1"), ("twice.jpg", b"2"), ("rest.mp3", b"1")]  # fmt: skip
    write_tar(tmp_path / "in" / "a.tar", [("good.jpg", b"1"), *hostile, ("last.jpg", b"2")])
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    found, bad = listed(tmp_path / "in" / "a.tar")
    assert [item.key for item in found] == ["a/good", "a/only", "a/last"]
    with pytest.raises(ValueError, match="not JSON"):
        found[1].load_texts()
    causes = ["'../out.jpg' leads out", "'/tmp/abs.jpg' leads out", "leads out", "leads out", "no plain file",
              "no plain file", "no plain file", "above the limit", "two members .jpg",
              "neither picture nor text"]  # fmt: skip
    assert len(bad) == len(causes) and all(cause in line for cause, line in zip(causes, bad, strict=True)), bad
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_damage_of_a_tar_is_never_taken_for_its_end(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{n}.jpg", b"x" * 600) for n in range(9)], format=tarfile.USTAR_FORMAT)
    whole = path.read_bytes()  # members of 512 + 1024 bytes
    assert len(listed(path)[0]) == 9
    for damaged, good in (
        (whole[: 4 * 1536 + 100], 4),  # inside a header
        (whole[: 4 * 1536 + 700], 5),  # inside a picture
        (whole[: 4 * 1536] + b"\x05" + whole[4 * 1536 + 1 :], 4),  # a header's checksum is wrong
        (b"", 0), (b"not a tar" * 200, 0),
    ):  # fmt: skip
        path.write_bytes(damaged)
        found, bad = listed(path)
        assert len(bad) == 1 and "the rest of it is lost" in bad[0] and len(found) == good
    path.write_bytes(whole[: 9 * 1536])  # without the two empty blocks at the end, as some write it
    assert len(listed(path)[0]) == 9 and not listed(path)[1]
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**40  # a header that claims a terabyte
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + whole)
    assert "a header of" in listed(path)[1][0] and not listed(path)[0]


def test_packed_tars_are_named_as_packed(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1")])
    whole = (tmp_path / "a.tar").read_bytes()
    for name, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / "a.tar").write_bytes(pack(whole))
        found, bad = listed(tmp_path / "a.tar")
        assert not found and len(bad) == 1 and f"it is compressed ({name}): unpack it first" in bad[0]


def packed(members, **options):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tars_joined_into_one_file_are_read_to_the_end(tmp_path, form):
    rng = np.random.default_rng()
    parts, path = (
        [[(f"{n}{k}.jpg", rng.bytes(int(rng.integers(1, 2000)))) for k in range(4)] for n in "abc"],
        tmp_path / "x.tar",
    )
    ends = (bytes(0), bytes(512 * int(rng.integers(1, 300))), bytes(7))
    whole = b"".join(packed(part, format=form) + end for part, end in zip(parts, ends, strict=True))
    path.write_bytes(whole)
    found, bad = listed(path)
    assert [(f"{item.key[2:]}.jpg", item.image.read(9999)) for item in found] == sum(parts, []) and not bad
    for rest in (b"x", b"x" * 512, gzip.compress(whole), parts[0][0][1]):
        path.write_bytes(whole[:-7] + rest)
        found, bad = listed(path)
        assert len(found) == 12 and len(bad) == 1 and "the rest of it is lost: no header at byte" in bad[0]


def test_members_lie_where_the_tar_says(tmp_path):
    content = {f"d/{n}.bin": np.random.default_rng().bytes(n * 300) for n in range(5)}
    write_tar(tmp_path / "a.tar", [member("d", tarfile.DIRTYPE), *content.items()])
    found = list(tar.members(str(tmp_path / "a.tar")))
    assert [(name, blob.read(9999)) for name, blob in found] == list(content.items())


def test_members_of_a_key_may_lie_apart(tmp_path):
    rng, keys = np.random.default_rng(), [f"{n:03d}" for n in range(30)]
    members = [(f"d/{key}.{suffix}", f"{key} {suffix}".encode()) for key in keys for suffix in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", [members[n] for n in rng.permutation(len(members))])
    found, bad = listed(tmp_path / "a.tar")
    assert sorted(item.key for item in found) == [f"a/d/{key}" for key in keys] and not bad
    for item in found:
        key = item.key[4:]
        assert item.image.read(99) == f"{key} jpg".encode() and item.load_texts()[0] == [f"{key} txt"]


def test_leftovers_of_systems_are_ignored(tmp_path):
    names = ["._a.jpg", "a.jpg", "d/._b.txt", "__MACOSX/._a.jpg", "__MACOSX/a.jpg", ".DS_Store", "__meta__",
             "__key__.json", "./b.jpg", "./b.txt", "Thumbs.db"]  # fmt: skip
    write_tar(tmp_path / "a.TAR", [(name, name.encode()) for name in names])
    items = list(everything(Webdataset(f"{tmp_path}/a.TAR")))
    assert [item.key for item in items] == ["a/a", "a/./b"] and items[1].load_texts()[0] == ["./b.txt"]


@pytest.mark.parametrize("names, want, others", [
    # A picture each, as webdataset's own tools number them; with a text each.
    (["a.0.jpg", "a.1.jpg"], [("a.0", ".jpg", ""), ("a.1", ".jpg", "")], []),
    (["a.0.jpg", "a.0.txt", "a.1.JPG", "a.1.TXT"], [("a.0", ".jpg", "a.0.txt"), ("a.1", ".JPG", "a.1.TXT")], []),
    # Dots in names of one's own.
    (["IMG 2.0 a.jpg", "IMG 2.0 a.txt", "IMG 2.1 b.jpg", "IMG 2.1 b.txt"],
     [("IMG 2.0 a", ".jpg", "IMG 2.0 a.txt"), ("IMG 2.1 b", ".jpg", "IMG 2.1 b.txt")], []),
    # Masks beside the picture, further pictures, and what is none.
    (["a.jpg", "a.seg.png", "a.txt", "a.cls"], [("a", ".jpg", "a.txt")], [".cls", ".png"]),
    (["a.jpg", "a.png", "a.txt", "a.json"], [("a", ".jpg", "a.txt")], [".png"]),
    (["a.0.jpg", "a.0.txt", "a.txt"], [("a.0", ".jpg", "a.0.txt")], [".txt"]),
    (["a.txt", "a.npy"], [("a", "", "a.txt")], [".npy"]),
])  # fmt: skip
def test_keys_with_further_dots(tmp_path, names, want, others):
    write_tar(tmp_path / "t.tar", [(name, name.encode()) for name in names])
    items = list(everything(Webdataset(f"{tmp_path}/t.tar")))
    found = [item for item in items if isinstance(item, Item)]
    for item, (key, suffix, text) in zip(found, want, strict=True):
        assert item.key == f"t/{key}"
        assert (item.image.read(99) if item.image else b"") == (f"{key}{suffix}".encode() if suffix else b"")
        assert item.load_texts()[0] == ([text] if text else [])
    assert [item.kind for item in items if isinstance(item, Passed)] == others
    assert len(items) == len(want) + len(others)


@pytest.mark.parametrize("names, cause", [
    (["a.0.jpg", "a.1.jpg", "a.txt"], "whether the text of a is of the picture a.0 cannot be told"),
    (["a.jpg", "a.caption.txt"], "whether the text of a.caption is of the picture a cannot be told"),
    (["a.0.jpg", "a.1.jpg", "a.json"], "whether the text of a is of the picture a.0 cannot be told"),
    (["a.avif", "a.txt"], "pictures of this kind are not read, only .jpg"),
    (["a.TIF", "a.json"], "pictures of this kind are not read, only .jpg"),
    (["a.tif"], "neither picture nor text, only .tif"),
    (["a.0.jpg", "a.0.JPG"], "two members .jpg"),
])  # fmt: skip
def test_a_key_that_cannot_be_understood_is_damage(tmp_path, names, cause):
    write_tar(tmp_path / "t.tar", [(name, b'{"caption": "x"}') for name in names] + [("b.jfif", b"b")])
    found, bad = listed(tmp_path / "t.tar")
    assert [item.key for item in found] == ["t/b"] and len(bad) == 1 and cause in bad[0], bad


def test_empty_texts_and_null_fields_are_counted(tmp_path):
    given = {
        "a.txt": b" \n",
        "b.txt": b"",
        "c.json": b'{"caption": null}',
        "d.json": b'{"caption": ""}',
        "e.json": b"{}",
    }
    write_tar(tmp_path / "t.tar", [(f"{name[0]}.jpg", b"x") for name in given] + list(given.items()))
    *found, last = listed(tmp_path / "t.tar")[0]
    assert [item.load_texts() for item in found] == [([], 1)] * 4
    with pytest.raises(ValueError, match="no text under 'caption'"):
        last.load_texts()
