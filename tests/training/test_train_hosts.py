"""Training by several hosts, each a real process: rows, agreement, and checkpoints by shard, against one host alone."""

import json
import os
import pathlib
import re
import signal
import time

import numpy as np
import pytest
import safetensors
import torch

from itit import train
from itit.checkpoint import store
from itit.config import Config, replace
from itit.tasks import TASKS
from tests.helpers import processes
from tests.helpers.fake_pod import Host
from tests.training.test_train import curves, run_here, same, settings, write_ids

DEVICES = 4
SIZES = dict(t2i_batch=4, i2t_batch=4, t2i2t_batch=4, i2t2i_batch=4, t2t_batch=4, i2i_batch=4, ema_decay=0.9,
             num_steps=8, checkpoint_every=2, keep_last=9, embed_dim=64, num_heads=4)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_ids(folder / "ids.tfrecord", 48)
    return folder


def host(hosts, values, changes=()):
    """`itit.train` on one host. Returns its exit code, how many numbers it read, and the rows of its first batch."""
    backend = Host(hosts, DEVICES)
    train.connect = lambda config, processes: backend
    values = values | dict(changes).get(hosts.index, {})
    config = replace(Config(), **values).resolve()
    rows = train.Streams(config, hosts.index, hosts.count).rows(0)
    return train.run(config), backend.num_read, {task: places.tolist() for task, places in rows.items()}


def elsewhere(hosts, folders, values):
    """The same, each host in a folder of its own."""
    os.chdir(folders[hosts.index])
    return host(hosts, values)


def pieces_of(folder):
    """File -> {tensor: numbers in it}, and tensor -> numbers of the whole, read without the package."""
    files, whole = {}, {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["pieces"])
        files[path.name] = {}
        for note in notes.values():
            count = int(np.prod([stop - start for start, stop in note["index"]]))
            files[path.name][note["tensor"]] = files[path.name].get(note["tensor"], 0) + count
            whole[note["tensor"]] = int(np.prod(note["shape"]))
    return files, whole


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes: sums of several threads differ in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory, one_thread):
    """What one host in plain torch makes of it."""
    values = settings(data, **SIZES, workdir=str(tmp_path_factory.mktemp("alone")))
    assert run_here(values) == 0
    return values["workdir"]


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_train_as_one_does_and_save_what_they_own(data, tmp_path, alone, count):
    values = settings(data, **SIZES, workdir=str(tmp_path))
    found = processes.run(host, count, values, timeout=120)
    assert [code for code, *_ in found] == [0] * count
    for task in TASKS:
        places = sum((rows[task] for *_, rows in found), [])
        whole = train.Streams(replace(Config(), **values).resolve()).rows(0)[task].tolist()
        assert places == whole and len(set(places)) == 4 and all(len(rows[task]) == 4 // count for *_, rows in found)
    assert same(alone, tmp_path)
    files, whole = pieces_of(tmp_path / "checkpoints" / "step_00000008")
    assert len(files) == count
    total = sum(whole.values())
    for number, (name, numbers) in enumerate(files.items()):
        assert name.startswith(f"state-{number:05d}-of-{count:05d}-")
        split = [tensor for tensor in numbers if numbers[tensor] < whole[tensor]]
        assert len(split) > 50 and all(numbers[tensor] * count == whole[tensor] for tensor in split)
        kept = sum(whole.values()) - sum(whole[tensor] for tensor in split)  # whole everywhere: host 0 alone writes it
        assert kept < total / 20 and sum(numbers.values()) == (number == 0) * kept + (total - kept) / count
    assert len(list(tmp_path.rglob("events.*"))) == 1  # curves are written by one


def test_what_some_hosts_saved_others_continue(data, tmp_path, alone):
    """2 hosts, then 4, then one with all devices, then plain torch: bit for bit one host's run."""
    values = settings(data, **SIZES, workdir=str(tmp_path))
    for count in (2, 4, 1):
        for code, num_read, _ in processes.run(host, count, values | {"stop_after_steps": 2}, timeout=120):
            assert code == 0
            if count == 4:
                _, whole = pieces_of(tmp_path / "checkpoints" / "step_00000002")
                assert 0.2 < num_read / sum(whole.values()) < 0.3  # a quarter, and what is whole everywhere
    assert store.latest_step(str(tmp_path)) == 6
    time.sleep(1)  # TensorBoard's files are named, and read in order, by the second
    assert run_here(values) == 0
    assert same(alone, tmp_path)
    assert curves(tmp_path).Scalars("loss")[-1].value == curves(alone).Scalars("loss")[-1].value


@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_host_stops_all_after_the_same_step(data, tmp_path, told):
    values = settings(data, **SIZES, workdir=str(tmp_path), log_every=2)
    values |= {"num_steps": 5000, "checkpoint_every": 5000}
    running = processes.start(host, 2, values, timeout=120)
    while not list(tmp_path.rglob("events.*")):
        time.sleep(0.1)
        assert all(process.is_alive() for process, _ in running)
    time.sleep(1)
    os.kill(running[told][0].pid, signal.SIGTERM)
    assert [code for code, *_ in processes.results(running)] == [143, 143]
    step = store.latest_step(str(tmp_path))
    assert step < 5000 and step % 2 == 0
    files, whole = pieces_of(tmp_path / "checkpoints" / f"step_{step:08d}")
    assert len(files) == 2 and store.restore(str(tmp_path))[1].keys() == whole.keys()


def test_hosts_that_do_not_belong_together_are_refused_at_the_start(data, tmp_path, monkeypatch):
    values = settings(data, **SIZES, workdir=str(tmp_path / "run"))
    for error in processes.run(host, 2, values, {1: {"seed": 7}}, timeout=120):
        assert str(error) == "--seed: host 0 has 0, host 1 has 7"
    write_ids(tmp_path / "ids.tfrecord", 48)
    relative = values | {f"{stream}_data": "ids.tfrecord" for stream in ("paired", "image", "text")}
    for error in processes.run(elsewhere, 2, [data, tmp_path], relative, timeout=120):
        same = r"\(paired_data: 48 records in 1 shard, image_ids and text_ids\)"
        assert re.fullmatch(rf"data of --paired_data: host 0 has .+ {same}, host 1 has .+ {same}", str(error))
    monkeypatch.setattr(train.Streams, "rows", lambda streams, step: {"t2i": np.arange(2)})
    for error in processes.run(host, 2, values, timeout=120):
        assert str(error) == "--t2i_batch: several of the 2 hosts feed the same rows"
    assert not (tmp_path / "run").exists()
