"""Skipped updates: written down with their rows, counted, and the end of a run after too many in a row."""

import json
import math

import numpy as np
import pytest
import torch

from itit.training.skips import Skips

ROWS = {"t2i": np.array([3, 5]), "t2t": np.array([8])}


class Unread:
    """In a number's place on the device: `float` of it is what waits."""

    def __init__(self, value, reads):
        self.value, self.reads = value, reads

    def __float__(self):
        self.reads.append(self.value)
        return self.value


def note(skips, steps, skipped, loss=math.nan):
    for step in steps:
        values = {"skipped": torch.tensor(float(skipped)), "loss": torch.tensor(loss), "grad_norm": torch.tensor(2.0)}
        skips.note(step, values)


def test_they_are_written_down_with_their_rows(tmp_path):
    skips = Skips(str(tmp_path), lambda step: {task: rows + step for task, rows in ROWS.items()}, 3, 3)
    note(skips, range(10), False, 1.0)
    assert skips.read() == 0 and not list(tmp_path.iterdir())
    note(skips, [10, 12], True)
    note(skips, [13], False)
    note(skips, [14, 15], True, 1.5)
    assert skips.read() == 4
    files = sorted(path.name for path in (tmp_path / "skipped").iterdir())
    assert files == [f"step_000000{step}-host_00003.json" for step in (10, 12, 14, 15)]
    record = json.loads((tmp_path / "skipped" / files[1]).read_text())
    assert record == {"step": 12, "loss": "nan", "grad_norm": "2.0", "rows": {"t2i": [15, 17], "t2t": [20]}}
    note(skips, [16], True)
    with pytest.raises(
        ValueError, match=r"^3 updates in a row were skipped, the last of step 16 \(from 0\): loss nan, g"
    ):
        skips.read()


def test_nothing_is_read_until_it_is_due(tmp_path):
    skips, reads = Skips(str(tmp_path), lambda step: ROWS, 0, 2), []
    for step in range(5):
        skips.note(step, {name: Unread(0.0, reads) for name in ("skipped", "loss", "grad_norm")})
    assert not reads
    assert skips.read() == 0 and len(reads) == 5
    assert skips.read() == 0 and len(reads) == 5
