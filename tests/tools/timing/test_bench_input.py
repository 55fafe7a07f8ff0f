"""The measurement of the input: what it decodes, and the arithmetic of its table."""

import re

import numpy as np
import pytest

from itit.data.streams import Streams
from tests.data.test_damage import picture
from tests.data.test_streams import ids_record, make_config, write, write_ids
from tools import bench_input
from tools.timing import decoding


@pytest.fixture
def streams(tmp_path):
    path = write(tmp_path / "raw", [ids_record(n, image=picture(), image_ids=None) for n in range(20)])
    texts = write_ids(tmp_path, name="texts")
    return Streams(make_config(paired_data=path, text_data=texts, t2t_batch=2, image_data=path, i2i_batch=6))


def test_pictures_are_those_of_the_run(streams, monkeypatch):
    monkeypatch.setattr(bench_input, "NUM_PICTURES", 30)
    found = bench_input.sample_pictures(streams)
    batches = [streams.batch(step) for step in range(3)]
    expected = np.concatenate([batch[f"{task}/images"] for batch in batches for task in ("t2i", "i2t", "i2i")])[:30]
    for data, pixels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(decoding.decode(data), pixels)


def test_the_table(streams):
    """14 rows a step, 12 with a picture."""
    speeds = [(10.0, 0.06), (200.0, 0.004)], [(5.0, 0.12), (300.0, 0.005)], [(8.0, 0.24), (100.0, 0.003)]
    lines = bench_input.table(streams, [tuple(decoding.Speed(*one) for one in two) for two in speeds])
    found = {match[1].strip(): (float(match[2]), float(match[3])) for match in
             (re.fullmatch(r"(.+?)\s+([\d.]+)\s+([\d.]+)", line) for line in lines[1:])}  # fmt: skip
    sizes = [source.mean_bytes for source in streams.sources.values()]
    megabytes = (6 * sizes[0] + 6 * sizes[1] + 2 * sizes[2]) / 1e6
    assert found == {
        "batches/s": (10, 8), "records/s": (140, 112), "pictures/s": (120, 96), "pictures/s, bare decoding": (300, 200),
        "MB/s of records": pytest.approx((10 * megabytes, 8 * megabytes), rel=1e-3),
        "processor ms a picture": (5, 10), "processor ms a picture, bare decoding": (3, 4),
        "input over bare decoding, by time": (0.4, 0.6), "input over bare decoding, by processor time": (0.6, 0.5),
    }  # fmt: skip


def test_rounds_of_ids_alone_have_nothing_to_decode(tmp_path):
    config = make_config(paired_data=write_ids(tmp_path))
    streams = Streams(config)
    found = bench_input.measure(streams, config, 2, 3)
    assert len(found) == 3 and all(speed.rate > 0 and bare is None for speed, bare in found)
    assert len(bench_input.table(streams, found)) == 4


def test_both_are_measured(streams):
    found = bench_input.measure(streams, streams._config, 1, 1)
    assert all(value > 0 for speed in found[0] for value in speed)
