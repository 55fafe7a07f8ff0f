"""Metrics on Weights & Biases, offline: the same numbers as TensorBoard has, read from the file that it leaves."""

import glob
import json
import logging
import struct

import numpy as np
import pytest

from itit.training.metrics import Metrics, curves

wandb = pytest.importorskip("wandb")
from wandb.proto import wandb_internal_pb2  # noqa: E402

from itit.training import wandb_run  # noqa: E402

HEADER, BLOCK = 7, 32768


def records(path):
    """Yields the records of a .wandb file: a log in blocks, of pieces that say whether they end a record."""
    with open(path, "rb") as file:
        data = file.read()
    place, whole = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def written(folder):
    """(settings, list of what was logged) of the only run in a folder."""
    (path,) = glob.glob(f"{folder}/wandb/offline-run-*/*.wandb")
    settings, rows = {}, []
    for record in records(path):
        if record.HasField("run"):
            settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            rows.append({item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                         for item in record.history.item})  # fmt: skip
    return settings, rows


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_it_gets_what_tensorboard_gets(tmp_path):
    losses = dict(zip((1, 2, 7), np.random.default_rng().normal(size=3).tolist(), strict=True))
    with Metrics(str(tmp_path), 10, also=wandb_run.WandbRun("project", str(tmp_path), {"seed": 7})) as metrics:
        for step, loss in losses.items():
            metrics.progress(step, {"loss": np.float32(loss), "loss/t2i": loss}, 4, 0.1)
        metrics.image(7, "samples/t2i", np.zeros((4, 4, 3), np.uint8))
        metrics.text(7, "report", "all well")
    settings, rows = written(tmp_path)
    assert settings["seed"] == 7
    numbers = [row for row in rows if "loss" in row]
    for key, (steps, values) in curves(str(tmp_path)).items():
        assert [row["step"] for row in numbers] == steps
        assert [row[key] for row in numbers] == pytest.approx(values)
    assert {key for row in rows for key in row} >= {"samples/t2i", "report", "rate/steps_per_second"}


def test_a_failure_on_the_way_ends_no_run(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    sink = wandb_run.WandbRun("project", str(tmp_path), {})
    run = sink._run
    monkeypatch.setattr(run, "log", lambda *_: (_ for _ in ()).throw(RuntimeError("no\nmore room")))
    for step in range(3):
        sink.scalars(step, {"loss": 1.0})
    sink.close()
    run.finish()
    assert caplog.text.count("no more room: nothing more goes there") == 1


def test_a_beginning_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.Error("api_key not\nconfigured")))
    with pytest.raises(ValueError, match="^--wandb_project=mine: api_key not configured$"):
        wandb_run.WandbRun("mine", str(tmp_path), {})
