"""Files, local and on an object store (fsspec's in-memory one stands in for gs://)."""

import os

import fsspec
import pytest

from itit import storage


@pytest.fixture(params=["local", "gs"])
def root(request, tmp_path, monkeypatch):
    if request.param == "local":
        return str(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    make = fsspec.filesystem
    # The store's names start with a slash, which gs:// ones do not.
    monkeypatch.setattr(memory, "glob", lambda pattern, detail: _glob(memory, pattern))
    monkeypatch.setattr(fsspec, "filesystem", lambda name: memory if name == "gs" else make(name))
    monkeypatch.setattr(type(memory), "_strip_protocol", classmethod(_strip))
    return "gs://bucket/folder"


def _strip(cls, path):
    return "/" + path.removeprefix("memory://").removeprefix("gs://").strip("/") if path.strip("/") else ""


def _glob(memory, pattern):
    return {name.strip("/"): info for name, info in type(memory).glob(memory, pattern, detail=True).items()}


def path_of(root, *names):
    path = storage.join(root, *names)
    storage.make_dirs(os.path.dirname(path))
    return path


def test_bytes_come_back(root):
    path, data = path_of(root, "sub", "a.bin"), os.urandom(5000)
    storage.write_bytes(path, b"old")
    storage.write_bytes(path, data)
    with storage.open(path) as file:
        assert file.read() == data
    assert storage.size(path) == 5000
    assert storage.read_range(path, 100, 50) == data[100:150]
    assert storage.read_range(path, 4990, 50) == data[4990:]
    assert storage.exists(path) and not storage.exists(path + "x")
    assert storage.list_dir(root) == ["sub"] and storage.list_dir(storage.join(root, "sub")) == ["a.bin"]
    assert storage.list_dir(storage.join(root, "absent")) == []
    storage.remove_tree(storage.join(root, "sub"))
    storage.remove_tree(storage.join(root, "sub"))
    assert not storage.exists(path)


def test_glob_sorts_and_names_what_is_missing(root):
    for name in ("b-1", "b-0", "a-0", "c"):
        storage.write_bytes(path_of(root, name), b"x")
    found = storage.glob(f"{root}/b-*, {root}/a-*,{root}/b-0")
    assert found == [storage.join(root, name) for name in ("a-0", "b-0", "b-1")]
    with pytest.raises(ValueError, match="no file matches '.*/z-.'"):
        storage.glob(f"{root}/a-*,{root}/z-*")
    with pytest.raises(ValueError, match="no file matches ''"):
        storage.glob(f"{root}/a-*,")


def test_commit_dir_makes_the_folder_visible(root):
    staging, final = storage.join(root, "staging"), storage.join(root, "final")
    for name in ("one", "two/three"):
        storage.write_bytes(path_of(staging, name), name.encode())
    assert not storage.exists(final)
    storage.commit_dir(staging, final)
    assert not storage.exists(staging)
    assert storage.list_dir(final) == ["one", "two"]
    assert storage.read_range(storage.join(final, "two/three"), 0, 99) == b"two/three"


def test_a_failed_local_write_keeps_the_former_file(tmp_path):
    path = str(tmp_path / "a")
    storage.write_bytes(path, b"former")
    with pytest.raises(OSError), storage.writer(path) as file:
        file.write(b"half")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == ["a"] and storage.read_range(path, 0, 10) == b"former"


def test_local_data_is_flushed_before_it_is_visible(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (events.append(name), real(*args)))
    storage.write_bytes(str(tmp_path / "a"), b"x")
    assert events == ["fsync", "replace", "fsync"]
    events.clear()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "f").write_bytes(b"x")
    storage.commit_dir(str(tmp_path / "s"), str(tmp_path / "t"))
    assert events == ["fsync", "fsync", "rename", "fsync"]


def test_glob_passes_over_folders_and_unfinished_files(root):
    storage.write_bytes(path_of(root, "a-folder", "x"), b"x")
    with pytest.raises(ValueError, match="no file matches"):
        storage.glob(f"{root}/a-*")
    if storage.is_remote(root):
        return
    with storage.writer(path_of(root, "a-0")), pytest.raises(ValueError, match="no file matches"):
        storage.glob(f"{root}/a-*")


def test_the_names_of_new_folders_are_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(storage, "_sync", flushed.append)
    storage.make_dirs(str(tmp_path / "a" / "b"))
    assert sorted(flushed) == [str(tmp_path), str(tmp_path / "a")]
    storage.make_dirs(str(tmp_path / "a" / "b"))
    assert len(flushed) == 2 and (tmp_path / "a" / "b").is_dir()
