"""Presets fill what is None and nothing else."""

import random

import pytest

from itit.config import Config, replace
from itit.presets import MODEL_PRESETS, T5_PRESETS


@pytest.mark.parametrize("preset", MODEL_PRESETS)
@pytest.mark.parametrize("size", T5_PRESETS)
def test_presets_fill_only_what_is_none(preset, size):
    depth = random.randrange(1, 9)
    config = replace(Config(), preset=preset, t5_size=size, depth=depth).resolve()
    assert config.model.depth == depth
    for name, value in MODEL_PRESETS[preset].items():
        assert name == "depth" or getattr(config.model, name) == value
    assert config.model.text_feature_dim == config.t5.dim == T5_PRESETS[size]["dim"]
    assert config.resolve() == config
