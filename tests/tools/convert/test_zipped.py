"""Where the files of an archive lie, against zipfile; archives that lie about themselves are refused."""

import random
import struct
import zipfile

import pytest

from tools.convert import zipped


def write(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.read_bytes()


def random_files(rng):
    return {f"x/{i}{'é' * rng.randrange(3)}": rng.randbytes(rng.randrange(200)) for i in range(rng.randrange(1, 20))}


def changed(data, offset, layout, *values):
    """The archive with numbers of its last entry in the directory (the first, where there is one) changed."""
    place = data.index(zipped.ENTRY) + offset
    return data[:place] + struct.pack(layout, *values) + data[place + struct.calcsize(layout) :]


def test_files_lie_where_zipfile_finds_them(tmp_path):
    for _ in range(30):
        files = random_files(random.Random())
        data = write(tmp_path / "x.zip", files)
        assert {name: data[part] for name, part in zipped.stored_files(data).items()} == files


def test_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    files = {f"x/{i}": random.Random().randbytes(size) for i, size in enumerate((0, 5, 99, 101, 5000, 7))}
    data = write(tmp_path / "x.zip", files)
    assert zipped.END64 in data
    assert {name: data[part] for name, part in zipped.stored_files(data).items()} == files


@pytest.mark.parametrize("change, message", [
    (lambda data: data[:-30], "the end of a zip archive is not there"),
    (lambda data: b"", "the end of a zip archive is not there"),
    (lambda data: data[5:], "cannot be|is not where it says|breaks off"),
    (lambda data: changed(data, 10, "<H", 8), "'x/data' in it is packed or encrypted"),
    (lambda data: changed(data, 8, "<H", 1), "packed or encrypted"),
    (lambda data: changed(data, 20, "<II", 10**6, 10**6), "'x/data' in it has 1000000 bytes at 36, and 136 are there"),
    (lambda data: changed(data, 24, "<I", 50), "'x/data' in it has 50 bytes"),
    (lambda data: changed(data, 42, "<I", 3), "'x/data' in it is not where it says"),
    (lambda data: changed(data, 42, "<I", 10**9), "'x/data' in it is not where it says"),
    (lambda data: changed(data, 28, "<H", 60_000), "is not where|breaks off|has"),
    (lambda data: data.replace(b"x/data", b"y/data", 1), "'x/data' in it has"),
    (lambda data: data[:-12] + struct.pack("<HII", 9, *struct.unpack("<II", data[-10:-2])) + data[-2:], "breaks off"),
    (lambda data: data[:-10] + struct.pack("<I", 2**30) + data[-6:], "directory of 1073741824 bytes at 136 cannot be"),
])  # fmt: skip
def test_archives_that_lie_are_refused(tmp_path, change, message):
    data = write(tmp_path / "x.zip", {"x/data": bytes(100)})
    assert zipped.stored_files(data) == {"x/data": slice(36, 136)}
    with pytest.raises(ValueError, match=message):
        zipped.stored_files(change(data))


def test_packed_files_and_names_that_come_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'x/bomb' in it is packed"):
        zipped.stored_files(write(tmp_path / "x.zip", {"x/bomb": bytes(10**6)}, zipfile.ZIP_DEFLATED))
    data = write(tmp_path / "x.zip", {"x/a": b"1", "x/b": b"2"}).replace(b"x/b", b"x/a")
    with pytest.raises(ValueError, match="'x/a' is in it twice"):
        zipped.stored_files(data)


def test_whatever_byte_is_another_one_it_is_read_or_refused(tmp_path):
    rng = random.Random()
    whole = write(tmp_path / "x.zip", random_files(rng))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            files = zipped.stored_files(bytes(data))
        except ValueError:
            continue
        assert all(0 <= part.start <= part.stop <= len(data) for part in files.values())
