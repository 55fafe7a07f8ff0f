"""Tars as img2dataset and webdataset write them, and hostile ones: each is named, nothing is unpacked."""

import io
import json
import tarfile

import numpy as np
import pytest

from tools.sources.item import MAX_TEXT, BadItem, Item
from tools.sources.webdataset import Webdataset


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
    items = list(Webdataset(str(path)).items())
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
        assert item.image.read(10**6) == data and item.load_texts() == [f"text {key}"]
    assert found[-2].image.read(99) == b"picture" and found[-2].load_texts() == ["from json"]
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


def test_packed_tars_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"1")], "w:gz")
    found, bad = listed(tmp_path / "a.tar")
    assert not found and len(bad) == 1 and "a.tar: the tar is damaged" in bad[0]
