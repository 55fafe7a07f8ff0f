"""Metrics: events read back by TensorBoard's own reader, rates against a fake clock, no TensorFlow."""

import io
import os
import random
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator

from itit import storage
from itit.tasks import LOSSES
from itit.training import metrics as metrics_lib
from itit.training.metrics import Metrics
from tests.helpers.common import ROOT


def read(folder):
    reader = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return reader.Reload()


def scalars(folder, key):
    return {event.step: event.value for event in read(folder).Scalars(key)}


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move: clock[0] in seconds."""
    now = [random.uniform(0, 1e5)]
    monkeypatch.setattr(metrics_lib.time, "monotonic", lambda: now[0])
    return now


def test_what_is_written_is_read_back(tmp_path):
    losses = {step: random.gauss(0, 3) for step in (1, 5, 10**6)}
    picture = np.random.default_rng().integers(0, 256, (7, 9, 3), np.uint8)
    with Metrics(str(tmp_path), 10) as metrics:
        for step, loss in losses.items():
            metrics.scalars(step, {"loss/t2i": torch.tensor(loss), "learning_rate": -loss})
        metrics.image(3, "samples/t2i", picture)
        metrics.text(4, "samples/i2t", "ein grüner Kreis")
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "loss/t2i") == pytest.approx(losses)
    assert scalars(folder, "learning_rate") == pytest.approx({step: -loss for step, loss in losses.items()})
    events = read(folder)
    (image,) = events.Images("samples/t2i")
    assert (image.step, image.height, image.width) == (3, 7, 9)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(image.encoded_image_string))), picture)
    (text,) = events.Tensors("samples/i2t/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "ein grüner Kreis"


def test_rates_and_time_left(tmp_path, clock, capsys):
    """After a slow first interval, 4 steps/s with a quarter of the time spent waiting."""
    with Metrics(str(tmp_path), 1000, start_step=100) as metrics:
        for step, seconds in ((120, 500.0), (140, 5.0), (160, 5.0)):
            clock[0] += seconds
            values = {"loss": 5.1234, "loss/t2i": 2.0, "loss/i2t": 3.0, "grad_norm": 1.25, "learning_rate": 1e-4}
            metrics.progress(step, values, num_samples=640, wait_seconds=1.25)
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == ["step 120/1000 | 0.04 steps/s | ETA 6:06:40 | loss 5.123", "    t2i 2.000  i2t 3.000"]
    assert printed[-2:] == ["step 160/1000 | 4 steps/s | ETA 0:03:30 | loss 5.123",
                            "    t2i 2.000  i2t 3.000  input wait 25%"]  # fmt: skip
    folder = tmp_path / "tensorboard"
    assert scalars(folder, "rate/steps_per_second")[160] == pytest.approx(4)
    assert scalars(folder, "rate/samples_per_second")[160] == pytest.approx(128)
    assert scalars(folder, "rate/input_wait")[160] == pytest.approx(0.25)
    assert scalars(folder, "loss/i2t") == {120: 3.0, 140: 3.0, 160: 3.0}


def test_rates_follow_the_last_calls(tmp_path, clock, capsys):
    with Metrics(str(tmp_path), 1000) as metrics:
        for step in range(1, 61):
            clock[0] += 10.0 if step <= 30 else 0.5
            metrics.progress(step, {}, num_samples=1, wait_seconds=0)
    assert " | 2 steps/s | ETA 0:07:50" in capsys.readouterr().out.splitlines()[-1]


def test_lines_fit_80_columns_whatever_is_trained(tmp_path, clock, capsys):
    """All tasks, large numbers; as a line that begins with the step, and lines that do not."""
    names = [*LOSSES, "discriminator", "perceptual"]
    values = {f"loss/{name}": 10 ** random.uniform(-3, 4) for name in names}
    with Metrics(str(tmp_path), 10**7) as metrics:
        for number in range(3):
            clock[0] += 10 ** random.uniform(-2, 4)
            metrics.progress(10**7 - 3 + number, {"loss": 12345.6, "grad_norm": 1.0} | values, 1, 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and sum(line.startswith("step ") for line in lines) == 3
    words = " ".join(line for line in lines if not line.startswith("step ")).split()
    assert words[: 2 * len(names)] == [word for name in names for word in (name, f"{values[f'loss/{name}']:.3f}")]


def test_the_time_left_counts_steps_that_cost_more(tmp_path, clock, capsys):
    """Steps from 40 on are said to cost 5 times as much, and take 8 times as long: known once it is measured."""

    def eta(seconds):
        return f" | ETA {metrics_lib.clock(seconds)}"

    with Metrics(str(tmp_path), 100, costs=((0, 2.0), (40, 10.0))) as metrics:
        for step in (1, 10, 20, 30, 45, 50, 60):
            before = {1: 0, 10: 1, 20: 10, 30: 20, 45: 30, 50: 45, 60: 50}[step]
            clock[0] += sum(1 if number < 40 else 8 for number in range(before, step)) + 100 * (step == 1)
            metrics.progress(step, {}, num_samples=1, wait_seconds=0)
    lines = capsys.readouterr().out.splitlines()
    assert "| 1 steps/s |" in lines[1] and eta(30 + 60 * 5) in lines[1]
    assert eta(20 + 60 * 5) in lines[2] and eta(10 + 60 * 5) in lines[3]
    # Of the steps from 1 to 45, five are dear ones: 79 seconds for 39 + 5 * 5 cheap ones.
    assert eta(55 * 5 * 79 / 64) in lines[4]
    assert "| 0.125 steps/s |" in lines[5] and eta(50 * 8) in lines[5] and eta(40 * 8) in lines[6]


def test_curves_are_all_that_was_written(tmp_path):
    """More points than TensorBoard's reader keeps by default."""
    written = {key: np.random.default_rng().normal(size=12_000) for key in ("loss/t2i", "grad_norm")}
    with Metrics(str(tmp_path), 10**6) as metrics:
        for i, values in enumerate(zip(*written.values(), strict=True)):
            metrics.scalars(7 * i, dict(zip(written, values, strict=True)))
    found = metrics_lib.curves(str(tmp_path))
    assert found.keys() == written.keys()
    for key, (steps, values) in found.items():
        assert steps == list(range(0, 84_000, 7)) and values == pytest.approx(written[key], rel=1e-6)


def test_a_resumed_run_replaces_the_curve_of_the_killed_one(tmp_path):
    with Metrics(str(tmp_path), 100) as metrics:
        for step in (10, 20, 21, 30):
            metrics.scalars(step, {"loss": step})
    with Metrics(str(tmp_path), 100, start_step=20) as metrics:
        metrics.scalars(22, {"loss": -22})
    assert scalars(tmp_path / "tensorboard", "loss") == {10: 10, 20: 20, 22: -22}


def test_remote_workdir_gets_the_events(tmp_path, clock, monkeypatch):
    """Names that begin with remote: stand for gs://."""
    monkeypatch.setattr(storage, "is_remote", lambda path: path.startswith("remote:"))
    monkeypatch.setattr(
        storage, "write_bytes", lambda path, data: (tmp_path / path.replace("/", "_")).write_bytes(data)
    )
    metrics = Metrics("remote:run", 10)
    clock[0] += 100
    metrics.progress(1, {"loss": 2.5}, 1, 0)
    assert scalars(next(tmp_path.glob("remote:*")), "loss") == {1: 2.5}
    metrics.scalars(2, {"loss": 3.5})
    metrics.close()
    assert scalars(next(tmp_path.glob("remote:*")), "loss") == {1: 2.5, 2: 3.5}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_the_curves_and_not_the_run(tmp_path, monkeypatch, caplog, capsys):
    """The writer's thread meets it; a later call hears of it."""
    metrics = Metrics(str(tmp_path), 10)
    metrics.progress(1, {"loss": 2.5}, 1, 0)
    metrics._writer.flush()
    writer = metrics._writer._get_file_writer().event_writer._async_writer._writer

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "write", fail)
    for step in range(2, 60):
        metrics.progress(step, {"loss": 3.5}, 1, 0)
        metrics.image(step, "a", np.zeros((2, 2, 3), np.uint8))
    metrics.close()
    assert len(capsys.readouterr().out.splitlines()) == 59
    (said,) = [record.getMessage() for record in caplog.records if "no more curves" in record.getMessage()]
    assert "No space left on device" in said and str(tmp_path) in said
    assert scalars(tmp_path / "tensorboard", "loss") == {1: 2.5}


def test_storage_that_fails_keeps_the_curves_for_later(tmp_path, clock, monkeypatch, caplog):
    monkeypatch.setattr(storage, "is_remote", lambda path: path.startswith("remote:"))
    written = {}

    def write(path, data):
        if not written.get("on"):
            raise OSError("remote: 503")
        written[path] = data

    monkeypatch.setattr(storage, "write_bytes", write)
    metrics = Metrics("remote:run", 10)
    clock[0] += 100
    metrics.progress(1, {"loss": 2.5}, 1, 0)
    assert "curves not written, for now: remote: 503" in caplog.text
    written["on"] = True
    metrics.close()
    (path,) = written.keys() - {"on"}
    (tmp_path / "events.out.tfevents.1").write_bytes(written[path])
    assert scalars(tmp_path, "loss") == {1: 2.5}


def test_host_memory_counts_what_is_held():
    before = metrics_lib.host_memory()
    held = np.ones(2**23)
    assert metrics_lib.host_memory() - before == pytest.approx(held.nbytes, rel=0.2)


def test_tensorflow_is_not_loaded(tmp_path):
    code = f"""
import sys
from itit.training.metrics import Metrics
with Metrics({str(tmp_path)!r}, 10) as metrics:
    metrics.progress(1, {{"loss": 1.0}}, 1, 0)
    metrics.text(1, "a", "b")
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert scalars(tmp_path / "tensorboard", "loss") == {1: 1.0}


def test_a_run_killed_before_its_first_checkpoint_begins_its_curves_anew(tmp_path):
    for values in ((0.5, 0.6, 0.7), (0.1, 0.2)):
        with Metrics(str(tmp_path), 10) as writer:
            for step, value in enumerate(values):
                writer.scalars(step, {"eval/x": value})
        time.sleep(1.1)  # files are told apart by the second
    assert metrics_lib.curves(str(tmp_path))["eval/x"] == ([0, 1], pytest.approx([0.1, 0.2]))
