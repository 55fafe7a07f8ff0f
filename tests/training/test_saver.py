"""Saves in the background: their numbers, their failures, one at a time; several hosts while these speak of else."""

import random
import threading
import time

import pytest
import torch

from itit import storage
from itit.backends.local import Local
from itit.checkpoint import store
from itit.hosts import Hosts
from itit.training.saver import Saver
from tests.checkpoint.test_checkpoint_hosts import row_tensors, rows_of
from tests.helpers import processes


@pytest.fixture
def held(monkeypatch):
    """Writing waits for `held.set()`."""
    gate, write_bytes = threading.Event(), storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda *args: gate.wait(60) and write_bytes(*args))
    yield gate
    gate.set()


def saver(workdir, keep_last=5):
    return Saver(str(workdir), {}, keep_last, 0, Hosts())


def test_a_save_holds_the_values_of_its_step_whatever_happens_after(tmp_path, held):
    tensor, parameter = torch.randn(5, 3), torch.nn.Parameter(torch.randn(4))
    state = {"tensor": tensor, "turned": tensor.T, "parameter": parameter}
    before = {name: value.detach().clone() for name, value in state.items()}
    with saver(tmp_path) as background:
        background.save(7, Local("cpu").owned(state))
        with torch.no_grad():
            tensor.fill_(9)
            parameter.zero_()
        background.check()
        assert store.latest_step(str(tmp_path)) is None
        held.set()
    step, found, _ = store.restore(str(tmp_path))
    assert step == 7 and all(torch.equal(found[name], before[name]) for name in before)


def test_one_save_at_a_time_and_the_end_waits_for_it(tmp_path, monkeypatch):
    running, most = [0], [0]
    save = store.save

    def slow(*args, **kwargs):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        save(*args, **kwargs)
        running[0] -= 1

    monkeypatch.setattr(store, "save", slow)
    with saver(tmp_path) as background:
        for step in range(1, 6):
            background.save(step, store.whole({"x": torch.tensor(step)}))
    assert most[0] == 1 and running[0] == 0
    assert [store.restore(str(tmp_path), step=step)[1]["x"].item() for step in range(1, 6)] == list(range(1, 6))


@pytest.mark.parametrize("found_by", ["check", "save", "end", "another failure"])
def test_a_failure_is_raised(tmp_path, monkeypatch, found_by):
    def full(path, data, former=None):
        raise OSError(28, "No space left on device", path)

    pieces = store.whole({"x": torch.zeros(1000)})
    background = saver(tmp_path)
    background.save(1, pieces)
    background.wait()
    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(ValueError, match=f"{tmp_path}/checkpoints/step_00000002: disk full; .* 4000 bytes"):  # noqa: SIM117
        with background:
            background.save(2, pieces)
            if found_by == "check":
                while True:  # each is a step
                    time.sleep(0.01)
                    background.check()
            if found_by == "save":
                background.save(3, pieces)
            if found_by == "another failure":
                raise RuntimeError("another host is gone")
    assert store.restore(str(tmp_path))[0] == 1


def steps_of(hosts, workdir):
    """Saves every other step, while the hosts tell each other numbers at every step."""
    with Saver(workdir, {"step": 0}, 2, 0, hosts) as background:
        for step in range(1, 13):
            time.sleep(random.uniform(0, 0.01))
            assert hosts.gather(step * 10 + hosts.index) == [step * 10 + host for host in range(hosts.count)]
            if step % 2 == 0:
                background.save(step, rows_of(hosts, step))
            background.check()
    return store.latest_step(workdir)


def test_hosts_save_while_they_speak_of_something_else(tmp_path):
    assert processes.run(steps_of, 2, str(tmp_path)) == [12] * 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    tensors = store.restore(str(tmp_path))[1]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in row_tensors(12).items())


def fail_on(hosts, workdir, failing):
    if hosts.index == failing:
        storage.write_bytes = lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(ValueError) as raised, Saver(workdir, {}, 2, 0, hosts) as background:
        background.save(5, rows_of(hosts, 5))
        for _ in range(2000):
            time.sleep(0.01)
            background.check()
    return str(raised.value)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_of_one_host_is_raised_by_all(tmp_path, failing):
    for host, said in enumerate(processes.run(fail_on, 2, str(tmp_path), failing)):
        assert said.startswith("" if host == failing else f"host {failing}: ") and "step_00000005: disk full" in said
    assert store.restore(str(tmp_path)) is None
