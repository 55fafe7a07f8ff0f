"""tools.bench_host: a small step on one virtual device, captured and lazy."""

import importlib.util
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT
from tools import bench_host


def test_the_table_adds_up_medians_times_calls():
    found = {"captured": ({"decode_step": [0.001, 0.003, 0.002, 0.002], "update": [0.01, 0.01]}, 5.0, "a CPU"),
             "lazy": ({"decode_step": [0.1] * 4, "update": [0.5, 0.7]}, 9.0, "a CPU")}  # fmt: skip
    head, decode, update, step, first = bench_host.table(found, 2)
    assert decode.split() == ["decode_step", "2", "2.00", "100.0", "50.0"]
    assert update.split() == ["update", "1", "10.00", "600.0", "60.0"]
    assert step.split() == ["a", "step", "3", "14.0", "800.0", "57.1"]
    assert first.endswith("captured 5 s, lazy 9 s") and head.split()[0] == "graph"


@pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")
def test_the_command():
    flags = ["--preset=nano", "--depth=1", "--image_decoder_depth=1", "--text_decoder_depth=1", "--t5_size=nano",
             "--codebook_size=256", "--vocab_size=256", "--bos_id=255", "--num_image_tokens=16", "--num_text_tokens=8",
             "--synth_decode_steps=2", "--num_decode_steps=2", "--t2i2t_warmup_steps=0", "--i2t2i_warmup_steps=0",
             "--t2i_batch=0", "--i2t_batch=0", "--t2i2t=half", "--t2i2t_batch=2", "--i2t2i=half", "--i2t2i_batch=2",
             "--steps=1"]  # fmt: skip
    ended = subprocess.run([sys.executable, "-m", "tools.bench_host", *flags], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = {line.split()[0]: line.split()[1:] for line in ended.stdout.splitlines()}
    for name, calls in (("prepare", 1), ("decode_step", 2), ("greedy_steps", 1), ("update", 1)):
        assert int(rows[name][0]) == calls and all(float(ms) > 0 for ms in rows[name][1:3])
    assert float(rows["update"][3]) > 1  # tracing takes longer than starting
