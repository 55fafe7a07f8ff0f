"""The model card says what the run's settings, its data and its report say."""

import hashlib

import torch

from itit import flags
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.convert import model_card

RECORD = {"itit_version": "0.9", "step": 123, "averaged": True, "parts": {
    "t5": {"path": "t5", "sha256": "aa11"}, "vqgan": {"path": "vqgan", "sha256": "bb22"}, "vocabulary": None,
}}  # fmt: skip


SETTINGS = dict(num_steps=900, lr_warmup_steps=10, ema_decay=0.99)


def card(report=None, record=RECORD, history=(), **values):
    tensors = {"a": torch.zeros(700, 1000), "b": torch.zeros(500_000)}
    return model_card.write(small.small(**SETTINGS, **values), record, "cc33", tensors, report, history)


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_settings_parts_and_scores_are_told():
    report = {"step": 123, "caption_score": 0.75, "untrained": {"caption_score": 0.01, "by": {"1": 0.5}}, "list": [1]}
    text = card(report, t2i_batch=6, i2t_batch=4, t2i2t_batch=0, t2i2t="off", i2t2i_batch=8, i2t2i="half",
                i2t2i_weight=0.5, i2t2i_warmup_steps=77)  # fmt: skip
    parts = [
        "# ITIT-nano, step 123", "1.2 M parameters, averaged weights (decay 0.99), step 123 of 900",
        "256 x 256 pixels are 16 tokens of 40 codes", "up to 8 tokens", "`tools.export` of ITIT 0.9",
        "| t2i | 6 | 1 | 0 |", "| i2t | 4 | i2t 1, i2t_i2i 1 | 0 |", "| i2t2i (half) | 8 | 0.5 | 77 |",
        "| ITIT | model.safetensors | cc33 |", "RANDOM, seed 0, frozen | t5 | aa11 |",
        "| image tokenizer | vqgan | bb22 |", "| SentencePiece vocabulary | none |  |",
        "| caption_score | 0.75 |", "| untrained/caption_score | 0.01 |", "| untrained/by/1 | 0.5 |",
    ]  # fmt: skip
    for part in parts:
        assert part in text, part
    assert "t2i2t" not in section(text, "Training") and "changed on the way" not in text
    assert "trained on pairs and unpaired pictures: " in text
    assert "Measured at step" not in text and "list" not in section(text, "Scores")
    assert "Measured at step 100, not at that of these weights" in card({"step": 100, "x": 1})
    assert "None were given when this was written." in card()
    assert "raw weights, step" in card(record=RECORD | {"averaged": False})
    assert ", from weights/xxl |" in card(t5_weights="weights/xxl")


def test_minutes_that_nobody_knows_are_not_told():
    assert "| minutes | 3.5 |" in card({"minutes": 3.5, "score": 0.0})
    for minutes in (None, 0.0, 0):
        text = section(card({"minutes": minutes, "score": 0.25}), "Scores")
        assert "minutes" not in text and "| score | 0.25 |" in text


def test_words_in_a_sentence():
    said = ["nothing", "a", "a and b", "a, b and c"]
    assert [model_card.listed(list(words)) for words in ("", "a", "ab", "abc")] == said


def test_unpaired_data_are_told_where_they_were_used():
    """Not those of a cycle that was still to come."""
    data = dict(paired_data="p", image_data="i", text_data="t", eval_data="e", t2i2t_warmup_steps=123)
    for joins, told in ((122, True), (123, False)):
        text = card(**data, i2t2i_warmup_steps=joins)
        assert (" and unpaired pictures: " in text) == told == ("`image_data`" in section(text, "Data"))
        assert "unpaired texts" not in text and "`text_data`" not in text and "`eval_data` | `e`" in text
        assert ("i2t2i (full)" in section(text, "Training")) == told


def test_settings_of_the_whole_run():
    """What was changed on the way before the step of these weights, and data that were used in the beginning alone."""
    begun = dict(paired_data="p", text_data="t", t2t_batch=6, t2i2t_warmup_steps=500, i2t2i_warmup_steps=500)
    then = begun | {"t2t_batch": 0, "text_data": "", "learning_rate": 0.5}
    phases = [(0, begun), (40, then), (123, then | {"learning_rate": 0.25}), (200, then | {"seed": 9})]
    history = [(step, flags.texts(small.small(**SETTINGS, **values))) for step, values in phases]
    text = card(history=history, **phases[-1][1])
    training = section(text, "Training")
    assert "| 40 | `learning_rate` | 0.0001 | 0.5 |" in training and "| 40 | `text_data` | t |" in training
    assert "0.25" not in training and "| 200 |" not in training and "| t2t | 6 | 1 | 0 |" in training
    assert "trained on pairs and unpaired texts: " in text and "| `text_data` | `t` | ? |" in section(text, "Data")


def test_what_others_wrote_is_text_in_a_cell():
    report = {"a | b\n# Title": 1, "link": "[x](http://y) <script>\x1b[2J", "long": "z" * 5000}
    lines = card(report, paired_data="x`|`y").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert r"| a \| b\\n# Title | 1 |" in rows and not any(line.startswith("# Title") for line in lines)
    assert r"| link | \[x\](http://y) \<script\>\\x1b\[2J |" in rows
    assert any(row.startswith("| long | zzz") and len(row) < 1100 for row in rows)
    assert any(row.startswith(r"| `paired_data` | `x'\|'y` | ? |") for row in rows)


def test_data_are_told_by_their_fingerprint(tmp_path):
    sizes = {"a-0.tfrecord": 5, "a-1.tfrecord": 7}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    pattern = str(tmp_path / "a-*")
    text = card(paired_data=pattern, image_data="gone/*", i2t2i_warmup_steps=0)
    listed = "a-0.tfrecord 5\na-1.tfrecord 7\n"
    digits = hashlib.sha256(listed.encode()).hexdigest()[:16]
    assert f"| `paired_data` | `{pattern}` | 2 | 12 | {digits} |" in text
    assert "| `image_data` | `gone/*` | ? | ? | not there when this was written |" in text
    assert "text_data" not in text
    (tmp_path / "a-1.tfrecord").write_bytes(b"x" * 8)
    assert digits not in card(paired_data=pattern)
