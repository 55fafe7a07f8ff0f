"""Presets fill what is None and nothing else."""

import random

import pytest

from itit.config import Config, replace, values_of
from itit.presets import MODEL_PRESETS, T5_PRESETS, USUAL


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


def test_what_no_file_tells_is_as_usual():
    config = Config().resolve()
    assert {name: value for name, value in values_of(config).items() if name in USUAL} == USUAL
    rows = random.randrange(50, 999)
    config = replace(Config(), vocab_size=rows, num_image_tokens=49).resolve()
    assert (config.model.vocab_size, config.model.bos_id, config.t5.vocab_size) == (rows, rows - 1, rows)
    assert config.model.num_image_tokens == 49 and replace(config, bos_id=7).resolve().model.bos_id == 7
