"""The table of tasks: every row is whole, and what is forgotten is refused."""

import inspect
import re

import pytest
import torch

from itit import config as config_lib
from itit import objectives
from itit import tasks as table
from itit.config import Config, replace
from itit.noise import Noise
from itit.tasks import CYCLES, LOSSES, MASKED, SAMPLES, STREAMS, TASKS, WHOLE_BATCH, WORDS, Loss
from itit.train_step import train_step
from tests.helpers.tiny import make_config, make_state, random_batch
from tools.timing.parts import PARTS


@pytest.mark.parametrize("name", TASKS)
def test_every_row_is_whole(name):
    task = TASKS[name]
    assert task.stream in STREAMS and task.batch >= 0 and task.about.endswith(".") and task.losses
    assert all(law in ("t2i", "i2t") for law in task.passes.values())
    for loss in task.losses.values():
        assert loss.mean_of in (MASKED, WORDS, SAMPLES, WHOLE_BATCH)
        assert (loss.masks in task.passes) if loss.mean_of == MASKED else not loss.masks
        assert loss.mean_of != WORDS or task.has_text
    assert not task.features or task.has_text
    assert bool(task.makes) == bool(task.cycle) and task.makes in ("", "picture", "text")
    # Fresh from one half, the other half is made.
    assert not task.cycle or (task.has_picture, task.has_text) == (task.makes == "text", task.makes == "picture")
    assert [*inspect.signature(getattr(objectives, name)).parameters] == ["model", "t5", "given", "noise", "config"]


def test_no_two_tasks_share_a_loss_or_a_pass():
    assert len(LOSSES) == sum(len(task.losses) for task in TASKS.values())
    passes = [name for task in TASKS.values() for name in task.passes]
    assert len(set(passes)) == len(passes) and len(set(PARTS)) == len(PARTS)


def test_the_table_makes_the_settings_of_its_tasks():
    names = [name for name, _, _ in config_lib.fields(config_lib.TaskSettings())]
    expected = [f"{task}_batch" for task in TASKS] + CYCLES + [f"{loss}_weight" for loss in LOSSES]
    assert names == expected + [f"{cycle}_warmup_steps" for cycle in CYCLES]
    assert all(getattr(Config().objective, f"{name}_batch") == task.batch for name, task in TASKS.items())


def test_tasks_are_switched_off_together():
    for kept in ([], ["t2i"], ["i2t", "i2t2i"], [*TASKS]):
        objective = replace(Config(), **{f"{name}_batch": 4 for name in TASKS} | table.only(*kept)).objective
        assert table.batches(objective) == {name: 4 * (name in kept) for name in TASKS}
        assert all((getattr(objective, cycle) != "off") == (cycle in kept) for cycle in CYCLES)


def test_what_a_step_costs_beside_another():
    """As the paper's pipelines go: a pass is 1, a loss with its backward pass 3, guidance doubles a step of drawing."""
    pairs = {"t2i": 3, "i2t": 5}
    config = make_config(num_decode_steps=7, synth_decode_steps=4, synth_cfg=False, t2i2t="full", i2t2i="half")
    assert table.cost(config, pairs) == 3 * 8 and table.cost(config, {}) == 0
    assert table.cost(config, pairs | {"t2i2t": 2}) == 3 * 8 + 2 * (4 + 2 + 3)
    assert table.cost(replace(config, synth_decode_steps=None, synth_cfg=True), {"t2i2t": 2}) == 2 * (14 + 2 + 3)
    assert table.cost(config, {"i2t2i": 2}) == 2 * (table.TEXT_PASSES + 3)
    assert table.cost(replace(config, half_cycle="stop_gradient"), {"i2t2i": 1}) == table.TEXT_PASSES + 2 + 3


def test_a_loss_of_the_whole_batch_is_refused_in_parts(monkeypatch):
    monkeypatch.setitem(TASKS, "t2t", TASKS["t2t"]._replace(losses={"t2t": Loss("it", WHOLE_BATCH)}))
    make_config(t2t_batch=4), make_config(t2t_batch=0, num_microbatches=2)
    with pytest.raises(ValueError, match=re.escape("--num_microbatches=2: must be 1 while t2t_batch is above 0")):
        make_config(t2t_batch=4, num_microbatches=2)


def step():
    config = make_config()
    return train_step(make_state(config, 0), random_batch(config, 0), [Noise(0, 0, "cpu")], 1e-3, config, [*TASKS])


def test_what_a_loss_forgets_is_an_error(monkeypatch):
    monkeypatch.setattr(objectives, "t2t", lambda *args: {"other": torch.zeros(())})
    with pytest.raises(
        ValueError, match=re.escape("objectives.t2t returns ['other'], its row in tasks.py has ['t2t']")
    ):
        step()
    monkeypatch.undo()
    monkeypatch.delattr(objectives, "t2t")
    with pytest.raises(AttributeError, match="t2t"):
        step()
    monkeypatch.undo()
    monkeypatch.setitem(TASKS, "t2t", TASKS["t2t"]._replace(losses={"t2t": Loss("it", "nothing that is known")}))
    with pytest.raises(KeyError, match="t2t"):
        step()
