"""Bad values are refused in one line that names flag and allowed values."""

import random
import re

import pytest
import torch
from absl import flags as absl_flags

from itit import checks, flags
from itit.config import Config, VqganConfig, fields, replace
from itit.models import ITITModel, T5Encoder
from itit.tasks import only
from tests.helpers import small

NUMBERS = {name: field for settings in (Config(), VqganConfig()) for name, _, field in fields(settings)
           if any(kind in str(field.type) for kind in ("int", "float"))}  # fmt: skip


def test_every_number_has_one_range_that_holds_its_default():
    named = [name for names in checks.RANGES.values() for name in names.split()]
    assert sorted(named) == sorted(NUMBERS)
    checks.check_ranges({name: field.default for name, field in NUMBERS.items()})
    for name in NUMBERS:
        for value in (float("nan"), float("inf"), -float("inf"), -1e30, 10**20, "1", True):
            with pytest.raises(ValueError, match=re.escape(f"--{name}={value}: must be in")):
                checks.check_ranges({name: value})


def test_ends_of_ranges_belong_to_them_where_the_bracket_says_so(monkeypatch):
    low, high = sorted(random.sample(range(1, 100), 2))
    for left in "[(":
        for right in "])":
            for zero in ("", ", or 0"):
                text = f"{left}{low}, {high}{right}{zero}"
                monkeypatch.setitem(checks._RANGE_OF, "seed", text)
                for value, good in ((low, left == "["), (high, right == "]"), (0, bool(zero)), (low - 0.5, False),
                                    (high + 0.5, False), ((low + high) / 2, True)):  # fmt: skip
                    if good:
                        checks.check_ranges({"seed": value, "other": -1})
                    else:
                        with pytest.raises(ValueError, match="--seed="):
                            checks.check_ranges({"seed": value})


@pytest.fixture(scope="module")
def parsed():
    flag_values = absl_flags.FlagValues()
    flags.define(flag_values=flag_values)
    flag_values(["main", *(f"--{key}={value}" for key, value in small.SIZES.items())])
    return flag_values


@pytest.mark.parametrize(("name", "owner"), [(name, owner) for name, owner, _ in fields(Config())])
def test_any_flag_resolves_or_is_refused_in_one_line_that_names_it(parsed, name, owner):
    before = parsed[name].value
    for value in ("0", "-1", "nan", "inf", "1e30", "1" + "0" * 20, "", "none", "1,2"):
        try:
            parsed[name].parse(value)
            config = flags.from_flags(flag_values=parsed).resolve()
        except (absl_flags.Error, ValueError) as error:
            assert "\n" not in str(error) and name in str(error), error
        else:
            if owner in ("model", "t5"):
                with torch.device("meta"):
                    ITITModel(config.model), T5Encoder(config.t5)
        parsed[name].value = before


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
        {"max_bad_records": -1},
        {"block_bytes": 0},
        {"shuffle_blocks": 0},
        {"read_ahead_mib": -1},
        {"read_requests": 0},
        {"num_workers": -2},
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
    with pytest.raises(ValueError, match="t2i_batch"):
        replace(Config(), **only()).resolve()
