"""The measurement of prepare: both sides are measured, and the arithmetic of its table."""

import re

import pytest

from tests.tools.data.test_preparing import settings_of, write_folder
from tools import bench_prepare
from tools.data.sources.folder import Folder
from tools.timing.decoding import Speed


def test_the_table():
    lines = bench_prepare.table([(Speed(90, 0.02), Speed(100, 0.01)), (Speed(60, 0.01), Speed(120, 0.008))])
    found = {match[1]: (float(match[2]), float(match[3])) for match in
             (re.fullmatch(r"(.+?)\s+([\d.]+)\s+([\d.]+)", line) for line in lines[1:])}  # fmt: skip
    assert found == {
        "pictures/s, prepare": (90, 75), "processor ms a picture, prepare": (10, 15),
        "pictures/s, bare": (120, 110), "processor ms a picture, bare": (8, 9),
        "prepare over bare, by time": (0.75, 0.7), "prepare over bare, by processor time": (0.8, pytest.approx(0.65)),
    }  # fmt: skip


def test_both_are_measured_and_nothing_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_prepare, "NUM_PICTURES", 3)
    write_folder(tmp_path / "in", 5)
    (found,) = bench_prepare.measure("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out"), 1)
    assert all(value > 0 for speed in found for value in speed) and not (tmp_path / "out").exists()
