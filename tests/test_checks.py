"""Bad values are refused in one line that names flag and allowed values."""

import pytest

from itit.config import Config, replace


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
    off = {name + "_batch": 0 for name in ("t2i", "i2t", "t2i2t", "i2t2i")}
    with pytest.raises(ValueError, match="t2i_batch"):
        replace(Config(), **off, t2i2t="off", i2t2i="off").resolve()
