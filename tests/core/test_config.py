"""Settings: declared once, replaced by name, read back from JSON."""

import dataclasses
import random

import pytest

from itit import config as config_lib
from itit.config import Config, replace


def test_names_are_unique_and_helped():
    rows = list(config_lib.fields(Config()))
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names))
    assert all(field.metadata["help"].endswith(".") for _, _, field in rows)
    for name, _, field in rows:
        choices = field.metadata["choices"]
        assert choices is None or field.default in choices, name


def test_replace_reaches_every_section_and_leaves_the_original():
    config, before = Config(), Config()
    changed = replace(config, seed=3, t5_seed=4, num_steps=9)
    assert (changed.train.seed, changed.t5.seed, changed.optim.num_steps) == (3, 4, 9)
    assert config == before
    with pytest.raises(ValueError, match="did you mean 'num_steps'"):
        replace(config, num_step=3)


def test_json_of_a_section():
    section = config_lib.VqganConfig(image_size=random.randrange(16, 999), channel_multipliers=(1, 3))
    text = config_lib.to_json(section)
    assert config_lib.from_json(config_lib.VqganConfig, text, "here") == section
    with pytest.raises(ValueError, match="here: not JSON"):
        config_lib.from_json(config_lib.VqganConfig, text[:-1], "here")
    with pytest.raises(ValueError, match="here: unknown field 'chanels'"):
        config_lib.from_json(config_lib.VqganConfig, text.replace('"channels"', '"chanels"'), "here")


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.seed = 1
