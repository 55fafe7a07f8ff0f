"""Checkpoints of several hosts, each a real process, that die, fail or disagree in the middle."""

import os
import pathlib
import random
import signal
import time

import pytest
import torch

from itit import storage
from itit.checkpoint import store
from itit.checkpoint.pieces import Piece
from tests.helpers import processes
from tests.helpers.faults import report, rounds


def row_tensors(step):
    """Tensors whose rows are split over hosts, in whole."""
    draw = torch.Generator().manual_seed(step)
    return {"table": torch.randn(8, 5000, generator=draw), "other": torch.randn(8, 3, generator=draw)}


def rows_of(hosts, step):
    size = 8 // hosts.count
    first = hosts.index * size
    return {
        name: [Piece(tuple(t.shape), ((first, first + size), (0, t.shape[1])), t[first : first + size])]
        for name, t in row_tensors(step).items()
    }


def save(hosts, workdir, step, keep_last=2):
    store.save(str(workdir), step, rows_of(hosts, step), {"step": step}, keep_last, hosts)


def save_steps(hosts, workdir, steps):
    for step in steps:
        save(hosts, workdir, step)


def read_rows(hosts, workdir):
    """(step, table's rows of this host, bytes of the files it read)."""
    size, total, read_range = 8 // hosts.count, [0], storage.read_range

    def noted(path, offset, length):
        total[0] += length
        return read_range(path, offset, length)

    storage.read_range = noted
    index = ((hosts.index * size, (hosts.index + 1) * size), (0, 5000))
    step, rows, meta = store.restore(workdir, lambda _, reader, meta: reader.read("table", index), hosts)
    assert meta == {"step": step}
    return step, rows.tolist(), total[0]


def assert_restored(workdir, step, count=1):
    found = processes.run(read_rows, count, str(workdir))
    assert [found_step for found_step, *_ in found] == [step] * count
    rows = torch.tensor([row for _, rows, _ in found for row in rows])
    assert torch.equal(rows, row_tensors(step)["table"])
    return [num_bytes for *_, num_bytes in found]


@pytest.mark.parametrize("writers, readers", [(1, 4), (4, 1), (4, 2), (2, 8), (4, 4)])
def test_what_some_hosts_write_others_read_by_shard(tmp_path, writers, readers):
    assert processes.run(save_steps, writers, tmp_path, [3, 5]) == [None] * writers
    sizes = assert_restored(tmp_path, 5, readers)
    pieces = 160_000 / writers if readers > writers else 160_000 / readers  # no piece is read in part
    assert all(pieces <= size < pieces + 3000 * writers for size in sizes)
    tensors = store.restore(str(tmp_path))[1]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in row_tensors(5).items())


def test_the_first_damage_that_any_host_meets_sends_all_back(tmp_path, capfd):
    processes.run(save_steps, 4, tmp_path, [3, 5])
    path = sorted((tmp_path / "checkpoints" / "step_00000005").glob("state-00002-*"))[0]
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    assert_restored(tmp_path, 3, 4)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and f"{path}: wrong checksum" in said[0]


def die_in_save(hosts, workdir, dying, moment):
    """Saves step 3; in the save of step 5 one host kills itself before, or after, it has written its file."""
    save(hosts, workdir, 3)
    write = storage.write_bytes

    def killed(path, data, former=None):
        if moment == "after":
            write(path, data, former)
        os.kill(os.getpid(), signal.SIGKILL)

    if hosts.index == dying:
        storage.write_bytes = killed
    save(hosts, workdir, 5)


@pytest.mark.parametrize("dying", [0, 1])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_host_that_dies_in_a_save_leaves_the_former_checkpoint(tmp_path, dying, moment):
    found = processes.run(die_in_save, 2, tmp_path, dying, moment, timeout=3)
    assert found[dying] is None and isinstance(found[1 - dying], RuntimeError)
    assert "another host is gone" in str(found[1 - dying])
    assert_restored(tmp_path, 3, 2)
    assert processes.run(save_steps, 2, tmp_path, [5, 7]) == [None, None]
    assert_restored(tmp_path, 7, 2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000005", "step_00000007"]
    assert len(os.listdir(tmp_path / "checkpoints" / "step_00000005")) == 3  # nothing is left of the killed save


def keep_saving(hosts, workdir, step):
    while True:
        step += 1
        save(hosts, workdir, step)


def test_sigkill_of_any_host_at_any_moment(tmp_path):
    step, began, count = 0, time.monotonic(), rounds(4)
    for _ in range(count):
        running = processes.start(keep_saving, 2, tmp_path, step, timeout=2)
        while store.latest_step(str(tmp_path)) in (None, step):
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.1))
        running[random.randrange(2)][0].kill()
        assert sorted(map(str, map(type, processes.results(running)))) == sorted(map(str, [RuntimeError, type(None)]))
        last, (step, tensors, meta) = step, store.restore(str(tmp_path))
        assert meta == {"step": step} and step > last
        assert all(torch.equal(tensors[name], tensor) for name, tensor in row_tensors(step).items())
    report("SIGKILL of one host of two", count, 0, began)


def fail_in_save(hosts, workdir, failing):
    save(hosts, workdir, 3)
    write = storage.write_bytes

    def full(path, data, former=None):
        raise OSError(28, "No space left on device", path)

    if hosts.index == failing:
        storage.write_bytes = full
    with pytest.raises(ValueError) as raised:
        save(hosts, workdir, 5)
    storage.write_bytes = write
    hosts.gather(None)
    left = sorted(os.listdir(pathlib.Path(workdir) / "checkpoints"))
    save(hosts, workdir, 7)  # and the run could go on
    return str(raised.value), left


@pytest.mark.parametrize("failing", [0, 1])
def test_a_full_disk_of_one_host_is_said_by_all_and_nothing_is_left(tmp_path, failing):
    for host, (said, left) in enumerate(processes.run(fail_in_save, 2, tmp_path, failing)):
        assert said.startswith("" if host == failing else f"host {failing}: ") and "step_00000005: disk full" in said
        assert left == ["step_00000003"]
    assert_restored(tmp_path, 7, 2)


def save_apart(hosts, folder):
    save(hosts, f"{folder}/{hosts.index}", 1)


def test_a_folder_that_hosts_do_not_share_is_said(tmp_path):
    for error in processes.run(save_apart, 2, tmp_path):
        assert isinstance(error, ValueError)
        assert "state-00001-of-00002-" in str(error) and "must be one folder that all hosts share" in str(error)
    assert not list(tmp_path.rglob("commit.json"))
