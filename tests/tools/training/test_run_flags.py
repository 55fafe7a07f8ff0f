"""The part of TrainConfig that the trainers among the tools take."""

import dataclasses
import json

import pytest
from absl import flags as absl_flags

from itit import flags
from itit.config import TrainConfig, VqganConfig
from tools.training import run_flags, vqgan_step


def parsed(monkeypatch, settings, *arguments):
    values = absl_flags.FlagValues()
    for section in settings:
        flags.define(section, values)
    values(["main", *arguments])
    monkeypatch.setattr(run_flags.flags_lib, "from_flags", lambda section: from_flags(section, values))


from_flags = flags.from_flags


def test_it_is_a_part_of_train_config_with_defaults_of_its_own(monkeypatch):
    section = run_flags.section(without=("sample_every",), log_every=20)
    names = {field.name for field in dataclasses.fields(section)}
    assert names == set(run_flags.TAKEN) - {"sample_every"} and "compute_dtype" not in names
    parsed(monkeypatch, [section], "--seed=4", "--backend=cpu")
    config = run_flags.train_config(section, "runs/x", sample_every=0)
    assert config == TrainConfig(workdir="runs/x", seed=4, backend="cpu", sample_every=0, log_every=20)
    with pytest.raises(AssertionError, match="no such setting"):
        run_flags.section(log_evry=3)


def test_counts_are_at_least_one(monkeypatch):
    section = run_flags.section()
    parsed(monkeypatch, [section], "--keep_last=0")
    with pytest.raises(ValueError, match="--keep_last=0: must be in .1, "):
        run_flags.train_config(section, "runs/x")


def test_values_are_what_json_gives_back():
    values = run_flags.values_of(VqganConfig(channel_multipliers=(1, 2)), vqgan_step.Recipe(batch_size=3))
    assert json.loads(json.dumps(values)) == values
    assert (values["batch_size"], values["channel_multipliers"], values["perceptual"]) == (3, [1, 2], "")
