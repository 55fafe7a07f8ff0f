"""Checkpoints: exact numbers, whole or not there, whatever kills the save or damages the files."""

import errno
import json
import multiprocessing
import os
import pathlib
import random
import subprocess
import time

import pytest
import torch

from itit import storage
from itit.checkpoint import store
from itit.checkpoint.store import whole
from tests.helpers.faults import report
from tests.helpers.flaky_storage import BUCKET, gcs  # noqa: F401 (a fixture)


def random_tensors(seed, size=50):
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(size, 7, generator=draw)
    bits = torch.randint(-(2**15), 2**15, (size,), generator=draw, dtype=torch.int16) & ~(1 << 7)
    return {
        "table": table,
        "tied": table,
        "part": table[3:9],
        "turned": table.T,
        "wide": table[:1].expand(4, 7),
        "bf16": bits.view(torch.bfloat16),  # any that are finite
        "float64": torch.randn(3, generator=draw, dtype=torch.float64),
        "int64": torch.randint(-(2**62), 2**62, (5,), generator=draw),
        "bool": torch.randint(0, 2, (2, 3), generator=draw).bool(),
        "scalar": torch.randn((), generator=draw),
        "none": torch.zeros(0, 4),
        "learned": torch.nn.Parameter(torch.randn(2, generator=draw)),
    }


def same(left, right):
    """Bit for bit the same names, types, shapes and numbers."""
    return left.keys() == right.keys() and all(
        (a.dtype, a.shape) == (b.dtype, b.shape)
        and a.detach().contiguous().view(-1).view(torch.uint8).equal(b.detach().contiguous().view(-1).view(torch.uint8))
        for a, b in ((left[name], right[name]) for name in left)
    )


def names(workdir):
    return sorted(os.listdir(workdir / "checkpoints"))


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


def save(workdir, step, keep_last=3):
    return store.save(str(workdir), step, whole(random_tensors(step)), {"step": step}, keep_last)


def restored_step(workdir):
    """The step that is restored, after checking that its content is that step's."""
    step, tensors, meta = store.restore(str(workdir))
    assert meta == {"step": step} and same(tensors, random_tensors(step))
    return step


def test_numbers_come_back_bit_for_bit(workdir):
    assert store.restore(str(workdir)) is None and store.latest_step(str(workdir)) is None
    seed, meta = random.randrange(10**9), {"epoch": 1.1, "names": ["ä"], "nothing": None}
    store.save(str(workdir), 12, whole(random_tensors(seed)), meta, 1)
    step, tensors, back = store.restore(str(workdir))
    assert (step, back) == (12, meta) and same(tensors, random_tensors(seed))
    assert store.latest_step(str(workdir)) == 12
    tensors["table"].add_(1)
    assert not tensors["tied"].equal(tensors["table"])


def test_the_newest_stay_and_leftovers_go(workdir):
    for step in (5, 10, 100, 20_000_000_000):
        left = workdir / "checkpoints" / "step_00000007"
        left.mkdir(parents=True, exist_ok=True)
        (left / "state-00000-of-00001-0123abcd.safetensors").write_bytes(b"a killed save")
        save(workdir, step, keep_last=2)
    assert names(workdir) == ["step_00000100", "step_20000000000"]
    assert restored_step(workdir) == store.latest_step(str(workdir)) == 20_000_000_000


def test_a_number_that_is_not_finite_pushes_out_no_checkpoint(workdir, capsys, monkeypatch):
    save(workdir, 10, keep_last=1)
    tensors = random_tensors(20)
    tensors["table"][random.randrange(50), random.randrange(7)] = random.choice([torch.nan, torch.inf])
    with pytest.raises(ValueError, match="step_00000020.*not written: t.* holds NaN or infinity"):
        store.save(str(workdir), 20, whole(tensors), {"step": 20}, 1)
    assert names(workdir) == ["step_00000010"] and restored_step(workdir) == 10
    # One that an earlier version has saved is passed over.
    monkeypatch.setattr("itit.checkpoint.shards.finite", lambda tensor: True)
    store.save(str(workdir), 20, whole(tensors), {"step": 20}, 2)
    monkeypatch.undo()
    assert restored_step(workdir) == 10
    assert "step_00000020: passed over" in capsys.readouterr().err


def shard(folder):
    """The file with the tensors."""
    (found,) = pathlib.Path(folder).glob("state-*.safetensors")
    return found


@pytest.mark.parametrize("name", ["state", "commit.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "remove"])
def test_damage_falls_back_to_the_one_before(workdir, capsys, name, harm):
    for step in (10, 20):
        save(workdir, step)
    path = workdir / "checkpoints" / "step_00000020"
    path = shard(path) if name == "state" else path / name
    data = bytearray(path.read_bytes())
    # Blanks of commit.json say nothing.
    places = [i for i, byte in enumerate(data) if name == "state" or not chr(byte).isspace()]
    data[random.choice(places)] ^= 1 << random.randrange(3)
    if harm == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "cut": data[: random.randrange(1, len(data))], "empty": b""}[harm])
    assert restored_step(workdir) == 10
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and str(path.parent) in warning and path.name in warning
    if harm in ("cut", "empty") and name != "commit.json":
        assert "bytes instead of" in warning
    # The run goes on from 10 and reaches 15, then 20: the damaged one must neither count nor be in the way.
    save(workdir, 15, keep_last=1)
    assert names(workdir) == ["step_00000015"]
    save(workdir, 20, keep_last=1)
    assert restored_step(workdir) == 20


def test_a_step_that_is_saved_again_is_the_former_one_until_it_is_whole(workdir, monkeypatch):
    earlier = shard(save(workdir, 10))
    write_bytes = storage.write_bytes

    def killed(path, data, former=None):
        if path.endswith("commit.json"):
            assert restored_step(workdir) == 10 and earlier.exists()
            raise KeyboardInterrupt
        write_bytes(path, data, former)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save(workdir, 10)
    assert restored_step(workdir) == 10
    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    with open(earlier, "ab") as file:
        file.write(b"x")
    path = save(workdir, 10)
    assert restored_step(workdir) == 10
    assert shard(path) != earlier and sorted(os.listdir(path)) == ["commit.json", shard(path).name]


def test_nothing_whole_is_an_error_and_nothing_complete_is_a_fresh_start(workdir):
    path = save(workdir, 10)
    os.truncate(shard(path), 100)
    with pytest.raises(ValueError, match="step_00000010: damaged"):
        store.restore(str(workdir))
    os.remove(os.path.join(path, "commit.json"))
    assert store.restore(str(workdir)) is None


def keep_saving(workdir, step):
    torch.set_num_threads(1)
    while True:
        step += 1
        store.save(str(workdir), step, whole(random_tensors(step, size=20_000)), {"step": step}, 2)


def test_sigkill_in_the_middle_of_saves(workdir):
    """Whatever moment the kill hits, the newest complete checkpoint is whole and no hand is needed to go on."""
    step, rounds, in_save = 0, 0, 0
    while rounds < 12 or not in_save:  # where a kill hits depends on what else the machine does
        rounds += 1
        assert rounds < 100
        process = multiprocessing.get_context("fork").Process(target=keep_saving, args=(workdir, step))
        process.start()
        while store.latest_step(str(workdir)) in (None, step):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        process.join()
        newest = store.latest_step(str(workdir))
        in_save += names(workdir)[-1] != f"step_{newest:08d}"
        last, step = step, store.restore(str(workdir))[0]
        assert step == newest > last
        assert same(store.restore(str(workdir))[1], random_tensors(step, size=20_000))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
@pytest.mark.parametrize("failing", [".safetensors", "commit.json"])
def test_failing_writes_leave_the_earlier_checkpoint(workdir, monkeypatch, code, failing):
    save(workdir, 10, keep_last=1)
    before = names(workdir)
    write_bytes = storage.write_bytes

    def write(path, data, former=None):
        if path.endswith(failing):
            raise OSError(code, os.strerror(code), path)
        write_bytes(path, data, former)

    monkeypatch.setattr(storage, "write_bytes", write)
    expected, match = (OSError, "denied") if code == errno.EACCES else (ValueError, r"step_00000020: disk full.* \d+ b")
    with pytest.raises(expected, match=match):
        save(workdir, 20, keep_last=1)
    assert names(workdir) == before
    assert restored_step(workdir) == 10


def test_a_disk_that_is_really_full(tmp_path):
    began = time.monotonic()
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        save(disk, 10)
        large = {"large": torch.zeros(2**20)}
        with pytest.raises(ValueError, match=f"{disk}/checkpoints/step_00000020: disk full; .* {4 * 2**20} bytes"):
            store.save(str(disk), 20, whole(large), {}, 1)
        assert names(disk) == ["step_00000010"]
        assert restored_step(disk) == 10
        report("a full disk", 1, 0, began, "path and bytes named")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_without_renames_the_commit_object_is_last(gcs, monkeypatch):  # noqa: F811
    workdir = f"gs://{BUCKET}/run"
    for step in (10, 20, 30):
        save(workdir, step, keep_last=2)
    folder = f"{workdir}/checkpoints"
    assert storage.list_dir(folder) == ["step_00000020", "step_00000030"]
    assert restored_step(workdir) == 30
    written, write_bytes = [], storage.write_bytes

    def killed(path, data, former=None):
        if path.endswith("commit.json"):
            raise KeyboardInterrupt
        written.append(path)
        write_bytes(path, data, former)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        save(workdir, 40)
    assert len(written) == 1 and storage.list_dir(folder)[-1] == "step_00000040"
    assert restored_step(workdir) == store.latest_step(workdir) == 30
    monkeypatch.setattr(storage, "write_bytes", write_bytes)
    save(workdir, 40)
    assert restored_step(workdir) == 40


def test_two_runs_in_one_bucket_do_not_overwrite_each_other(gcs, monkeypatch):  # noqa: F811
    """The other one saves the same step while this one writes its numbers."""
    workdir, write = f"gs://{BUCKET}/run", store.shards.write

    def overtaken(path, pieces):
        monkeypatch.setattr(store.shards, "write", write)
        save(workdir, 10)
        return write(path, pieces)

    monkeypatch.setattr(store.shards, "write", overtaken)
    with pytest.raises(ValueError, match="step_00000010/commit.json: written by another process"):
        store.save(workdir, 10, whole(random_tensors(99)), {"step": 99}, 3)
    assert restored_step(workdir) == 10
    assert len(storage.list_dir(f"{workdir}/checkpoints/step_00000010")) == 2


def test_every_so_many_steps_one_is_kept_for_ever(workdir):
    for step in range(10, 100, 10):
        store.save(str(workdir), step, whole(random_tensors(step)), {"step": step}, 2, keep_every=30)
    assert names(workdir) == [f"step_000000{step}" for step in (30, 60, 80, 90)]
    store.save(str(workdir), 50, whole(random_tensors(50)), {"step": 50}, 1, keep_every=30)
    assert names(workdir) == ["step_00000030", "step_00000050"]  # 60 and later were passed over


def test_one_step_is_restored_by_its_number(workdir):
    for step in (5, 10, 20):
        save(workdir, step)
    step, tensors, _ = store.restore(str(workdir), step=10)
    assert step == 10 and same(tensors, random_tensors(10))
    with pytest.raises(ValueError, match=r"no whole checkpoint of step 7; there are folders of \[5, 10, 20\]"):
        store.restore(str(workdir), step=7)
    (state,) = (workdir / "checkpoints" / "step_00000010").glob("state-*")
    os.truncate(state, 100)
    with pytest.raises(ValueError, match="no whole checkpoint of step 10"):
        store.restore(str(workdir), step=10)


def test_an_older_format_is_named(workdir):
    """As one file, state.safetensors: neither damaged, to be passed over and removed, nor a fresh start."""
    old = workdir / "checkpoints" / "step_00000010"
    old.mkdir(parents=True)
    files = {"state.safetensors": {"bytes": 3, "crc32c": 1}, "meta.json": {"bytes": 3, "crc32c": 1}}
    (old / "commit.json").write_text(json.dumps({"step": 10, "num_tensors": 1, "files": files, "versions": {}}))
    with pytest.raises(ValueError, match=r"step_00000010: .* older format.*state-\*-of-\*\.safetensors"):
        store.restore(str(workdir))
    assert names(workdir) == ["step_00000010"]
