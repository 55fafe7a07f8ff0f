"""Locks: one holder at a time, none left by a process that is gone; several hosts of one run share a folder."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import signal
import threading

import pytest

from itit import locks, storage
from itit.hosts import Hosts
from tests.helpers import processes
from tests.helpers.flaky_storage import BUCKET, gcs  # noqa: F401 (a fixture)
from tools.data import splits

FORK = multiprocessing.get_context("fork")


def begin(hold, *arguments):
    """A process that holds a lock until it is killed."""
    ready = FORK.Event()

    def work():
        with hold(*arguments):
            ready.set()
            signal.pause()

    process = FORK.Process(target=work, daemon=True)
    process.start()
    assert ready.wait(60)
    return process


def test_the_second_is_refused_until_the_first_is_gone(tmp_path):
    path = str(tmp_path / "new" / "run" / ".lock")
    first = begin(locks.hold, path, "--output=here")
    said = rf"^--output=here: in use by another process \(PID {first.pid} on \S+\)"
    with pytest.raises(ValueError, match=said), locks.hold(path, "--output=here"):
        raise AssertionError("the block must not run")
    first.kill()
    first.join()
    assert os.path.exists(path)  # and it locks nothing
    with locks.hold(path, "here"), pytest.raises(ValueError, match=f"PID {os.getpid()} "), locks.hold(path, "here"):
        raise AssertionError("the block must not run")
    assert not os.path.exists(path)


def test_a_folder_that_nothing_came_into_goes_again(tmp_path):
    for content in (False, True):
        with contextlib.suppress(KeyError), locks.hold(str(tmp_path / "run" / ".lock"), ""):
            assert (tmp_path / "run" / ".lock").exists()
            if content:
                (tmp_path / "run" / "file").write_bytes(b"")
            raise KeyError
        assert (tmp_path / "run").exists() == content
    assert os.listdir(tmp_path / "run") == ["file"]


def test_never_two_at_once(tmp_path):
    """Many threads take the lock file, which its holder removes, again and again."""
    path, inside, most = str(tmp_path / ".lock"), [], []

    def work():
        for _ in range(200):
            with contextlib.suppress(ValueError), locks.hold(path, ""):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert set(most) == {1} and len(most) > 100 and not os.path.exists(path)


def test_where_there_are_no_locks_nothing_is_locked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.hold(str(tmp_path / ".lock"), ""), locks.hold("gs://bucket/run/.lock", ""):
        storage.write_bytes(str(tmp_path / "file"), b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def hold_run(hosts, workdir):
    with locks.of_run(workdir, hosts):
        return hosts.gather(sorted(os.listdir(workdir)))[hosts.index]


def test_hosts_share_the_folder_of_their_run(tmp_path):
    assert processes.run(hold_run, 2, str(tmp_path)) == [[".lock"]] * 2
    other = begin(locks.of_run, str(tmp_path), Hosts())
    first, second = processes.run(hold_run, 2, str(tmp_path))
    assert str(first).startswith(f"{tmp_path}: in use by another process")
    assert str(second) == f"host 0: {first}"
    other.kill()


def test_two_calls_make_one_folder(tmp_path):
    output = str(tmp_path / "made")
    first = begin(splits.new_folder, output)
    with pytest.raises(ValueError, match=f"--output={output}: in use"), splits.new_folder(output):
        raise AssertionError("the block must not run")
    first.kill()
    first.join()
    with splits.new_folder(output) as staging:
        storage.write_bytes(f"{staging}/file", b"")
    assert os.listdir(tmp_path) == ["made"] and os.listdir(output) == ["file"]


def test_on_gs_the_later_of_two_has_it(gcs):  # noqa: F811
    path, meanwhile = f"gs://{BUCKET}/out/.lock", "^--output=x: another process has begun on it meanwhile"
    with pytest.raises(ValueError, match=meanwhile), locks.claim(path, "--output=x") as first:
        first()
        with locks.claim(path, "--output=x") as second:
            second()
            with pytest.raises(ValueError, match=meanwhile):
                first()
        with pytest.raises(ValueError, match=meanwhile):
            first()
    with pytest.raises(KeyboardInterrupt), locks.claim(path, "--output=x"):
        raise KeyboardInterrupt
    assert storage.exists(path), "as a killed process leaves it"
    with locks.claim(path, "--output=x") as third:
        third()
    assert not storage.exists(path)


def test_on_a_disk_a_claim_is_a_lock(tmp_path):
    with locks.claim(str(tmp_path / ".lock"), "--output=x") as check:
        check()
        with pytest.raises(ValueError, match="in use by another process"), locks.claim(str(tmp_path / ".lock"), "x"):
            pass


@pytest.mark.parametrize("lock", [locks.hold, locks.claim])
def test_of_what_is_no_path_the_path_is_named(tmp_path, lock):
    for folder in ("~/x", "s3://b/x", "gs:/b/x"):
        with pytest.raises(ValueError, match=f"^{folder}: "), lock(f"{folder}/.lock", "--output"):
            pass
