"""The index beside a shard against the positions that TensorFlow-free scanning finds; damage of every byte."""

import os
import re

import numpy as np
import pytest

from itit import storage
from itit.data import records, shard_index


def shard_of(folder, sizes):
    path, rng = str(folder / "part-0.tfrecord"), np.random.default_rng()
    with records.RecordWriter(path) as writer:
        for size in sizes:
            writer.write(rng.bytes(size))
    return path, writer.spans


@pytest.mark.parametrize("count", [0, 1, 50])
def test_the_index_equals_a_scan(tmp_path, count):
    path, spans = shard_of(tmp_path, np.random.default_rng().integers(0, 3000, count))
    assert shard_index.read(path) is None
    shard_index.write(path, spans)
    found = shard_index.read(path)
    assert found.dtype == np.int64 and found.shape == (count, 2)
    np.testing.assert_array_equal(found, records.index(path))
    for offset, length in found.tolist():
        assert len(records.read(path, offset, length)) == length
    assert storage.size(shard_index.path_of(path)) == 28 + 4 * count


def test_no_pattern_takes_an_index_for_a_shard(tmp_path):
    path, spans = shard_of(tmp_path, [3, 4])
    shard_index.write(path, spans)
    for pattern in ("*", "part-*", "*.tfrecord", "**"):
        assert storage.glob(f"{tmp_path}/{pattern}") == [path]


def test_every_flipped_byte_and_every_cut_is_found(tmp_path):
    path, spans = shard_of(tmp_path, [3, 0, 2000])
    shard_index.write(path, spans)
    place = tmp_path / ".part-0.tfrecord.index"
    good = place.read_bytes()
    damaged = [good[:end] for end in range(len(good))] + [good + b"\0"]
    damaged += [good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :] for at in range(len(good))]
    for data in damaged:
        place.write_bytes(data)
        with pytest.raises(records.BadRecord, match=re.escape(f"{place}@0: ")):
            shard_index.read(path)


def test_the_index_of_another_shard_is_refused(tmp_path):
    path, spans = shard_of(tmp_path, [3, 4])
    shard_index.write(path, spans)
    shard_of(tmp_path, [3, 5])
    with pytest.raises(records.BadRecord, match="is the index of 39 bytes, but .*part-0.tfrecord has 40"):
        shard_index.read(path)
    # Lengths that belong to no file, under a right checksum.
    data = shard_index.HEAD.pack(shard_index.MAGIC, 40, 3) + np.array([3, 5], "<u4").tobytes()
    data += shard_index.CHECKSUM.pack(records.google_crc32c.value(data))
    (tmp_path / ".part-0.tfrecord.index").write_bytes(data)
    with pytest.raises(records.BadRecord, match="do not add up"):
        shard_index.read(path)


def test_the_index_of_a_far_larger_shard_is_damage_as_well(tmp_path):
    """As of one that was cut off near its beginning."""
    path, spans = shard_of(tmp_path, [3] * 20)
    shard_index.write(path, spans)
    os.truncate(path, 5)
    with pytest.raises(records.BadRecord, match="is the index of a larger shard than .*part-0.tfrecord: remove it"):
        shard_index.read(path)
