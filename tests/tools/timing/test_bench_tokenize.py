"""The measurement of tokenize: that it makes what the command makes, and the arithmetic of its table."""

import re

import pytest

from itit import storage
from tests.helpers.pictures import write_shards
from tests.tools.training.test_train_vqgan import save_random_vqgan
from tools import bench_tokenize
from tools.data import tokenizing
from tools.timing.decoding import Speed


def rows(lines):
    found = (re.fullmatch(r"(.+?)\s+([\d.e+-]+)\s+([\d.e+-]+)", line) for line in lines[1:])
    return {match[1]: (float(match[2]), float(match[3])) for match in found}


@pytest.mark.parametrize("shared", [False, True])
def test_the_table(shared):
    """Of two rounds: decoding at 100 and 200, tokenizing at 300 and 200, the command at 90 and 140."""
    found = [
        (Speed(100, 0.01), Speed(300, 0.02), Speed(90, 0.04)),
        (Speed(200, 0.01), Speed(200, 0.02), Speed(140, 0.03)),
    ]
    told = rows(bench_tokenize.table(["x-*"], found, shared))
    assert told["pictures/s, decoding"] == (200, 150) and told["pictures/s, tokenize x-*"] == (140, 115)
    assert told["processor ms a picture, tokenize x-*"] == (30, 35)
    name = "both parts" if shared else "the slower part"
    best, median = (1.167, 1.3) if shared else (0.7, 0.8)
    assert told[f"x-* over {name}, by time"] == pytest.approx((best, median), rel=1e-3)
    assert told["x-* over both parts, by processor time"] == pytest.approx((1, 0.875))


def test_all_are_measured_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_tokenize, "NUM_BATCHES", 1)
    write_shards(tmp_path, [5, 70])
    pattern, settings = f"{tmp_path}/raw-*", tokenizing.Settings(save_random_vqgan(tmp_path / "vqgan"), backend="cpu")
    before = storage.list_files(str(tmp_path))
    stand_in = tokenizing.Tokenizers(bench_tokenize.StandIn(1, 16))
    for tokenizers in (tokenizing.tokenizers_of(settings), stand_in):
        (found,) = bench_tokenize.measure([pattern, pattern], settings, tokenizers, 1)
        assert len(found) == 4 and all(value > 0 for speed in found for value in speed)
    assert storage.list_files(str(tmp_path)) == before
    assert len(bench_tokenize.sample_pictures(pattern)) == 75


def test_the_stand_in_takes_its_time_one_batch_after_the_other():
    device = bench_tokenize.StandIn(20, 32)
    waits = [device.begin([None] * 64) for _ in range(3)]
    assert [wait().shape for wait in waits] == [(64, 4)] * 3
    speed = bench_tokenize.timed(lambda: [w() for w in [device.begin([None] * 64) for _ in range(3)]], 192)
    assert speed.rate <= 64 / 0.02
