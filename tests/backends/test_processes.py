"""What torchrun's processes do when one of them is killed, stopped or hangs, is told to stop, or is given bad input."""

import os
import signal
import time

import pytest

from itit import locks, train
from itit.backends.connect import connect
from itit.checkpoint import store
from itit.config import TrainConfig
from itit.tasks import only
from tests.backends.test_distributed import launch, run
from tests.helpers import processes, torchrun
from tests.training.test_faults import digest
from tests.training.test_train import settings, write_ids

SIZES = dict(**only("t2i", "i2t"), depth=1, text_decoder_depth=1, image_decoder_depth=1, log_every=100,
             checkpoint_every=5, watchdog_seconds=10.0)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_ids(folder / "ids.tfrecord", 48)
    return folder


def workers(agent):
    """The processes that torchrun has started, in order."""
    with open(f"/proc/{agent.pid}/task/{agent.pid}/children") as file:
        return sorted(map(int, file.read().split()))


def wait_for_step(workdir, step, alive):
    while (store.latest_step(str(workdir)) or 0) < step:
        assert alive(), "ended by itself"
        time.sleep(0.05)


def test_told_to_stop_then_killed_torchrun_goes_on_to_the_same_end(data, tmp_path):
    """SIGTERM to torchrun saves once; SIGKILL of a process, and --max-restarts begins again from what was saved."""
    values = settings(data, **SIZES, workdir=str(tmp_path / "run"), num_steps=120, keep_last=10**6)
    agent = torchrun.start(values, 2)
    wait_for_step(values["workdir"], 5, lambda: agent.poll() is None)
    agent.terminate()
    _, err = agent.communicate(timeout=60)
    told = store.latest_step(values["workdir"])
    assert err.count("interrupted: ") == err.count(f"interrupted: saved step {told} in ") == 1
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert steps == sorted({*range(5, told + 1, 5), told})
    agent = torchrun.start(values | {"checkpoint_every": 20}, 2, "--max-restarts=1")
    wait_for_step(values["workdir"], told + 1, lambda: agent.poll() is None)
    victim = workers(agent)[1]
    os.kill(victim, signal.SIGKILL)
    _, err = agent.communicate(timeout=120)
    assert agent.returncode == 0, err
    assert f"error: process 1 of 2 (PID {victim} on " in err and "is gone or stopped" in err
    whole = values | {"workdir": str(tmp_path / "whole"), "checkpoint_every": 10**6}
    assert launch(2, whole) == [0, 0]
    assert digest(values["workdir"]) == digest(whole["workdir"])


def test_a_stopped_process_is_named_and_left_within_the_time_of_the_watchdog(data, tmp_path, capfd):
    values = settings(data, **SIZES, workdir=str(tmp_path), num_steps=10**6)
    running = processes.launch(run, 2, values)
    (first, _), (second, _) = running
    wait_for_step(tmp_path, 5, first.is_alive)
    os.kill(second.pid, signal.SIGSTOP)
    try:
        first.join(60)
    finally:
        second.kill()
    assert first.exitcode == 1
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and said[0].startswith(f"error: process 1 of 2 (PID {second.pid} on ")
    assert store.restore(str(tmp_path))[0] >= 5


def hangs(values, index):
    """`itit.train`, and this process does not come to the end of its seventh step."""
    step, calls = train.train_step, []

    def stuck(*args):
        calls.append(1)
        while len(calls) == 7 and os.environ["RANK"] == str(index):
            time.sleep(0.1)
        return step(*args)

    train.train_step = stuck
    return run(values)


def test_a_process_that_hangs_is_named(data, tmp_path, capfd):
    values = settings(data, **SIZES, workdir=str(tmp_path), num_steps=10**6)
    running = processes.launch(hangs, 2, values, 0)
    running[1][0].join(60)
    running[0][0].join(60)  # it sees that the other one has left
    assert [process.exitcode for process, _ in running] == [1, 1]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert said[0].startswith(f"error: process 0 of 2 (PID {running[0][0].pid} on ")
    assert " hangs: process 1 of 2 " in said[0]
    assert store.restore(str(tmp_path))[0] == 5


# ---------------------------------------------------------------------------------------------- bad input


def one_line(results):
    """The error of the one process that says what is wrong; the others leave without a word, with 2."""
    said = [error for error in results if not isinstance(error, SystemExit)]
    assert len(said) == 1 and isinstance(said[0], ValueError), results
    assert all(error.code == 2 for error in results if isinstance(error, SystemExit))
    return str(said[0])


def with_own(values, own):
    """`itit.train` where each process has settings of its own, or code."""
    changes = dict(own[int(os.environ["RANK"])])
    if code := changes.pop("code", None):
        train.code = lambda: code
    return run(values | changes)


def test_bad_input_ends_in_one_line_and_nothing_is_written(data, tmp_path):
    write_ids(tmp_path / "other.tfrecord", 48)
    values = settings(data, **SIZES, workdir=str(tmp_path / "run"))
    other = {"paired_data": str(tmp_path / "other.tfrecord")}

    def refused(count, own=None, **changes):
        own = own or [{}] * count
        return one_line(processes.results(processes.launch(with_own, count, values | changes, own)))

    assert refused(3) == "--t2i_batch=4: must be a multiple of 3 devices"
    said = refused(2, num_microbatches=4)
    assert said == "--t2i_batch=4: must be a multiple of 2 devices in 4 microbatches"
    assert refused(2, [{}, {"seed": 7}]) == "--seed: process 0 has 0, process 1 has 7"
    assert refused(2, [{}, other]).startswith("--paired_data: process 0 has ")
    assert refused(2, [{"code": "a"}, {"code": "b"}]) == "the code in itit/: process 0 has a, process 1 has b"
    assert refused(2, backend="xla").startswith("--backend=xla with WORLD_SIZE=2: one process drives all chips")
    assert refused(2, compile=True).startswith("--compile: not with several processes on processors, where ")
    assert not (tmp_path / "run").exists()
    with locks.hold(str(tmp_path / "run" / ".lock"), "first"):
        assert "in use by another process" in refused(2)
        assert os.listdir(tmp_path / "run") == [".lock"]


def test_data_that_differ_under_one_name(data, tmp_path):
    def elsewhere(values):
        folder = tmp_path / os.environ["RANK"]
        folder.mkdir()
        write_ids(folder / "ids.tfrecord", 48)
        os.chdir(folder)
        return run(values)

    values = settings(data, **SIZES, workdir=str(tmp_path / "run")) | {
        f"{stream}_data": "ids.tfrecord" for stream in ("paired", "image", "text")
    }
    said = one_line(processes.results(processes.launch(elsewhere, 2, values)))
    assert said.startswith("data of --paired_data: process 0 has ") and not (tmp_path / "run").exists()


def test_a_command_that_is_one_process_is_refused_under_torchrun(monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match="^WORLD_SIZE=2: this command is one process; start it without torchrun$"):
        connect(TrainConfig(backend="cpu"))
