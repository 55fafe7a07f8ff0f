"""Settings: presets fill what is None, bad values are refused in one line that names flag and allowed values."""

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


@pytest.mark.parametrize("preset", config_lib.MODEL_PRESETS)
@pytest.mark.parametrize("size", config_lib.T5_PRESETS)
def test_presets_fill_only_what_is_none(preset, size):
    depth = random.randrange(1, 9)
    config = replace(Config(), preset=preset, t5_size=size, depth=depth).resolve()
    assert config.model.depth == depth
    for name, value in config_lib.MODEL_PRESETS[preset].items():
        assert name == "depth" or getattr(config.model, name) == value
    assert config.model.text_feature_dim == config.t5.dim == config_lib.T5_PRESETS[size]["dim"]
    assert config.resolve() == config


def test_replace_reaches_every_section_and_leaves_the_original():
    config, before = Config(), Config()
    changed = replace(config, seed=3, t5_seed=4, num_steps=9)
    assert (changed.train.seed, changed.t5.seed, changed.optim.num_steps) == (3, 4, 9)
    assert config == before
    with pytest.raises(ValueError, match="did you mean 'num_steps'"):
        replace(config, num_step=3)


@pytest.mark.parametrize(
    "values",
    [
        {"preset": "b"},
        {"num_image_tokens": 200},
        {"num_text_tokens": 1},
        {"num_heads": 7},
        {"text_decoder_num_heads": 5},
        {"bos_id": 1},
        {"bos_id": 32128},
        {"text_feature_dim": 5},
        {"t5_vocab_size": 100},
        {"dropout": 1.0},
        {"image_decoder_sees_text": False},
        {"mask_ratio_max_i2t": 0.4},
        {"mask_ratio_std": 0.0},
        {"label_smoothing": 1.0},
        {"num_decode_steps": 257},
        {"synth_decode_steps": 0},
        {"beam_size": 0},
        {"lr_warmup_steps": 500_001},
        {"beta2": 1.0},
        {"t2i_batch": 3, "num_microbatches": 2},
        {"t2i2t": "off"},
        {"i2t2i": "off", "i2t2i_batch": 8},
        {"t2t_batch": -1},
        {"keep_last": 0},
        {"backend": "gpu"},
        {"max_bad_records": -1},
    ],
    ids=str,
)
def test_bad_values_are_refused_in_one_line(values):
    with pytest.raises(ValueError) as caught:
        replace(Config(), **values).resolve()
    message = str(caught.value)
    assert "\n" not in message
    assert any(f"--{name}={value}" in message.replace("'", "") for name, value in values.items()), message


def test_no_task_at_all_is_refused():
    off = {name + "_batch": 0 for name in ("t2i", "i2t", "t2i2t", "i2t2i")}
    with pytest.raises(ValueError, match="t2i_batch"):
        replace(Config(), **off, t2i2t="off", i2t2i="off").resolve()


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
