"""The loop of the tools' trainers: it resumes, logs, saves and stops as ITIT's own does."""

import os
import signal

import numpy as np
import pytest
import torch

from itit.backends.local import Local
from itit.checkpoint import store
from itit.config import TrainConfig
from itit.training import metrics
from tools.training import loop

pytestmark = pytest.mark.usefixtures("kept_signals")
BACKEND = Local("cpu")


class Counter:
    """A state of one number."""

    def __init__(self):
        self.total = torch.zeros(())

    def tensors(self):
        return {"total": self.total}


class Numbers:
    """Batches that hold their step."""

    def batch(self, step):
        return {"x": np.full(3, step, np.float32)}


def run(folder, state, num_steps=10, at_step=None, flag_values=None, **values):
    shown = []

    def train_step(batch, step):
        assert batch["x"].tolist() == [step] * 3
        if at_step:
            at_step(step)
        state.total += float(step)
        return {"loss": state.total.clone()}

    settings = {"log_every": 2, "sample_every": 4, "checkpoint_every": 3} | values
    config = TrainConfig(workdir=str(folder), **settings)
    code = loop.train(config, num_steps, state, BACKEND, Numbers(), train_step, lambda _, step: shown.append(step),
                      flag_values or {})  # fmt: skip
    return code, shown


def test_it_runs_to_the_end_and_carries_on(tmp_path, capsys):
    state = Counter()
    assert run(tmp_path, state, stop_after_steps=5) == (0, [4])
    again = Counter()
    assert run(tmp_path, again) == (0, [8, 10])
    assert again.total == sum(range(10))
    assert "carrying on from step 5" in capsys.readouterr().out
    assert store.latest_step(str(tmp_path)) == 10
    steps, values = metrics.curves(str(tmp_path))["loss"]
    assert steps == [1, 2, 4, 5, 6, 8, 10] and values[-1] == 45  # the first of a call, too
    assert run(tmp_path, Counter()) == (0, [])


def test_a_signal_saves_and_leaves(tmp_path, capsys):
    state = Counter()
    code, _ = run(tmp_path, state, at_step=lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None)
    assert code == 143 and store.latest_step(str(tmp_path)) == 5
    assert "interrupted: saved step 5" in capsys.readouterr().err


def test_other_flags_and_lost_losses_are_errors(tmp_path):
    run(tmp_path, Counter(), num_steps=2, flag_values={"seed": 1})
    with pytest.raises(ValueError, match="--seed=2: the run in .* began with 1"):
        run(tmp_path, Counter(), flag_values={"seed": 2})
    state = Counter()
    state.total += float("nan")
    with pytest.raises(ValueError, match="loss is nan at step 1; try a lower --learning_rate"):
        run(tmp_path / "other", state)
