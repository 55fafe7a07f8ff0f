"""Files, local and on a server of Google Cloud Storage over HTTP, in fine weather and in bad."""

import errno
import multiprocessing
import os
import re
import signal
import urllib.request

import pytest

from itit import storage
from tests.helpers.flaky_storage import BUCKET, gcs  # noqa: F401 (a fixture)


@pytest.fixture(params=["local", "gs"])
def root(request, tmp_path):
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("gcs")
    return f"gs://{BUCKET}/folder"


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


def test_brackets_and_commas_of_names(root):
    """Of folders that people have; a pattern is a pattern wherever it matches as one."""
    for name in ("br [2021]/a", "one, two/a.txt", "one, two/b.txt", "x1", "x[1]"):
        storage.write_bytes(path_of(root, name), b"x")
    assert storage.glob(f"{root}/br [2021]/*") == [storage.join(root, "br [2021]/a")]
    assert storage.glob(f"{root}/one, two/*.txt") == [storage.join(root, f"one, two/{name}.txt") for name in "ab"]
    assert storage.glob(f"{root}/x[1]") == [storage.join(root, "x1")]
    assert storage.glob(f"{root}/x1,{root}/x[[]1]") == [storage.join(root, name) for name in ("x1", "x[1]")]
    with pytest.raises(ValueError, match=r"no file matches '.*/br \[2022\]/\*'"):
        storage.glob(f"{root}/br [2022]/*")


def test_files_of_a_folder_and_below(root):
    names = ["a.txt", "b [1], c/d.txt", "b [1], c/e/f.txt"]
    for name in (*names, ".hidden", ".cache/x", "b [1], c/._d.txt"):
        storage.write_bytes(path_of(root, "in", name), b"x")
    for folder in (storage.join(root, "in"), storage.join(root, "in", "")):
        assert storage.list_files(folder) == [storage.join(root, "in", name) for name in names]
    assert storage.list_files(storage.join(root, "in", "b [1], c")) == [
        storage.join(root, "in", name) for name in names[1:]
    ]
    assert storage.list_files(storage.join(root, "absent")) == []


def test_links_are_followed_and_never_round_and_round(tmp_path):
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"x")
    for name, target in (("in/back", "in"), ("in/a/up", "in"), ("in/there", "out")):
        (tmp_path / name).symlink_to(tmp_path / target)
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "absent")
    assert storage.list_files(str(tmp_path / "in")) == [str(tmp_path / "in" / "there" / "x")]


def test_commit_dir_makes_the_folder_visible(tmp_path):
    staging, final = str(tmp_path / "staging"), str(tmp_path / "final")
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


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError) as error, storage.writer(str(tmp_path / "a")) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == f"{tmp_path}/a"
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        storage.write_bytes(str(tmp_path / "folder"), b"x")
    assert error.value.filename == f"{tmp_path}/folder" and os.listdir(tmp_path) == ["folder"]


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


# ---------------------------------------------------------------------------------------------- gs://

ROOT = f"gs://{BUCKET}/folder"


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 1, 5 * 2**19])
def test_streams_and_large_objects_arrive_whole_whatever_they_end_with(gcs, monkeypatch, size):  # noqa: F811
    monkeypatch.setattr(storage, "CHUNK", 2**20)  # more goes in pieces
    for end in (b"\r", b"\n", b"\0"):
        data, path = os.urandom(size - 1) + end, f"{ROOT}/a"
        with storage.writer(path) as file:
            file.write(data[: size // 2])
            file.write(data[size // 2 :])
        assert storage.read_bytes(path) == data
        storage.write_bytes(path, data[::-1] + end)
        assert storage.read_bytes(path) == data[::-1] + end


def test_a_stream_that_fails_leaves_no_object(gcs):  # noqa: F811
    storage.write_bytes(f"{ROOT}/a", b"x")
    with pytest.raises(RuntimeError, match="by the caller"), storage.writer(f"{ROOT}/b") as file:
        file.write(os.urandom(1000))
        raise RuntimeError("by the caller")
    assert storage.list_dir(ROOT) == ["a"]


@pytest.mark.parametrize("there", [False, True])
def test_what_another_process_wrote_is_not_written_over(gcs, there):  # noqa: F811
    path = f"{ROOT}/commit.json"
    if there:
        storage.write_bytes(path, b"former")
    former = storage.version(path)
    assert (former > 0) == there
    storage.write_bytes(path, b"ours", former)
    assert storage.read_bytes(path) == b"ours" and storage.version(path) != former
    with pytest.raises(ValueError, match="commit.json: written by another process"):
        storage.write_bytes(path, b"theirs", former)
    assert storage.read_bytes(path) == b"ours"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses before requests are repeated, in seconds without the random part, which is below 1; none is made."""
    found = []

    async def sleep(seconds):
        found.append(int(seconds))

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", sleep)
    return found


def once(kind, method):
    """A fault of the first request of a method."""
    left = [kind]
    return lambda this: left.pop() if this == method and left else None


def test_a_lost_answer_to_our_own_request_is_no_other_process(gcs, pauses, monkeypatch):  # noqa: F811
    path = f"{ROOT}/commit.json"
    former = storage.version(path)
    monkeypatch.setattr(gcs, "fault", once("lost", "POST"))
    storage.write_bytes(path, b"ours", former)
    assert storage.read_bytes(path) == b"ours"
    storage.write_bytes(f"{ROOT}/other", b"x")
    monkeypatch.setattr(gcs, "fault", once("lost", "DELETE"))
    storage.remove_tree(path)
    assert storage.list_dir(ROOT) == ["other"]


@pytest.mark.parametrize("kind", [408, 429, 500, 502, 503, 504, "reset", "lost"])
def test_what_passes_is_waited_for(gcs, pauses, monkeypatch, kind):  # noqa: F811
    storage.write_bytes(f"{ROOT}/a", b"data")
    monkeypatch.setattr(gcs, "fault", once(kind, "GET"))
    assert storage.read_range(f"{ROOT}/a", 1, 2) == b"at"
    monkeypatch.setattr(gcs, "fault", once(kind, "POST"))
    storage.write_bytes(f"{ROOT}/b", b"xy")
    assert storage.read_bytes(f"{ROOT}/b") == b"xy"
    assert pauses == [1, 1] or kind in ("reset", "lost") and pauses == [1]  # aiohttp repeats a GET by itself, at once


def test_what_does_not_pass_is_an_error_that_names_the_path(gcs, pauses, monkeypatch):  # noqa: F811
    storage.write_bytes(f"{ROOT}/a", b"data")
    monkeypatch.setattr(gcs, "fault", lambda method: 503)
    for work in (storage.read_bytes, storage.exists, storage.size, storage.list_dir, storage.remove_tree,
                 storage.version, lambda path: storage.write_bytes(path, b"x"), lambda path: storage.glob(path + "*"),
                 lambda path: storage.write_bytes(path, b"x", 0)):  # fmt: skip
        with pytest.raises(OSError, match=re.escape(f"{ROOT}/a") + ".*503"):
            work(f"{ROOT}/a")
    assert max(pauses) == 16 and pauses[:5] == [1, 2, 4, 8, 16]
    monkeypatch.setattr(gcs, "fault", lambda method: 403)
    with pytest.raises(OSError, match="Forbidden"):
        storage.write_bytes(f"{ROOT}/a", b"x")


def test_what_other_hosts_write_is_seen(gcs):  # noqa: F811
    """A list that was asked for is not kept."""
    storage.write_bytes(f"{ROOT}/a", b"x")
    assert storage.list_dir(ROOT) == ["a"] and not storage.exists(f"{ROOT}/b")
    address = os.environ["STORAGE_EMULATOR_HOST"]
    request = urllib.request.Request(f"{address}/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=folder/b",
                                     b"yy", {"Content-Type": "application/octet-stream"}, method="POST")  # fmt: skip
    urllib.request.urlopen(request).close()
    assert storage.list_dir(ROOT) == ["a", "b"] and storage.size(f"{ROOT}/b") == 2


@pytest.mark.parametrize(
    "path", ["~", "~/x", "~me/x", "gs:/b/x", "gs://", "gs:///x", "file:///x", "file:/x", "s3://b/x"]
)
def test_what_would_become_a_folder_by_mistake_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for use in (storage.exists, storage.make_dirs, storage.glob, storage.open, storage.list_dir, storage.remove_tree,
                lambda path: storage.write_bytes(path, b"")):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{re.escape(path)}: ") as error:
            use(path)
        assert "\n" not in str(error.value)
    assert not os.listdir(tmp_path)
    storage.write_bytes("./~x", b"mine")
    storage.write_bytes("a:b", b"mine")
    assert sorted(os.listdir(tmp_path)) == ["a:b", "~x"]


@pytest.mark.parametrize("path", [" gs://b/x", "\tx", " /x"])
def test_a_space_before_a_path_makes_no_folder_of_it(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for use in (storage.exists, storage.make_dirs, storage.open, lambda path: storage.write_bytes(path, b"")):
        with pytest.raises(ValueError, match="must not begin with a space"):
            use(path)
    assert not os.listdir(tmp_path)


def test_rests_of_killed_writers_go_and_what_is_written_stays(tmp_path):
    ready = multiprocessing.get_context("fork").Event()

    def work():
        with storage.writer(str(tmp_path / "killed")) as file:
            file.write(b"half")
            file.flush()
            ready.set()
            signal.pause()

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    assert ready.wait(60)
    for name in (".mine.tmp-x", "a.tmp-1", ".b.index"):
        (tmp_path / name).write_bytes(b"")
    kept = {".mine.tmp-x", "a.tmp-1", ".b.index"}
    with storage.writer(str(tmp_path / "here")) as file:
        storage.remove_rests(str(tmp_path))
        both = {f".killed.tmp-{process.pid}", f".here.tmp-{os.getpid()}"}
        assert set(os.listdir(tmp_path)) == kept | both
        process.kill()
        process.join()
        storage.remove_rests(str(tmp_path))
        assert set(os.listdir(tmp_path)) == kept | {f".here.tmp-{os.getpid()}"}
        file.write(b"whole")
    assert (tmp_path / "here").read_bytes() == b"whole"
    storage.remove_rests(str(tmp_path / "absent"))


def test_a_folder_in_the_place_of_a_pattern_is_named_as_one(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=f"no file matches '{tmp_path}': it is a folder; all in it: '{tmp_path}/\\*'"):
        storage.glob(str(tmp_path))


def test_a_bucket_that_is_not_there_is_named(gcs):  # noqa: F811
    for work, name in ((storage.read_bytes, "x.txt"), (storage.size, "x.txt"), (storage.glob, "[*]")):
        with pytest.raises(FileNotFoundError, match=f"no such file or bucket: 'gs://nowhere/{re.escape(name)}'$"):
            work(f"gs://nowhere/{name}")
