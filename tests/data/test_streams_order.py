"""The order of a run's batches: one for all hosts and workers; and what is read for it, and when."""

import hashlib

import numpy as np
import pytest

from itit import storage
from itit.data.prefetch import prefetch
from itit.data.streams import Streams
from tests.data.test_streams import ids_of, make_config, numbers, write_ids

HASHED = dict(block_bytes=600, shuffle_blocks=2, t2i_batch=16, i2t_batch=8, t2t_batch=8, read_ahead_mib=1)


def digest(config, steps, num_hosts=1, ahead=None):
    """Hash of the numbers of all rows of these steps, in order, with the hosts' rows laid side by side."""
    hosts = [Streams(config, host, num_hosts) for host in range(num_hosts)]
    ahead = [prefetch(host, steps[0], ahead) for host in hosts] if ahead else None
    total = hashlib.sha256()
    for step in steps:
        parts = [next(host) for host in ahead] if ahead else [host.batch(step) for host in hosts]
        for key in ("t2i/text_ids", "i2t/text_ids", "t2t/text_ids"):
            total.update(numbers(np.concatenate([part[key] for part in parts])).tobytes())
    for host in ahead or ():
        host.close()
    return total.hexdigest()


def test_the_order_is_the_same_for_all_hosts_and_workers(tmp_path):
    """Over two epochs of uneven shards, a mixture among them; and after a resume in mid-epoch on other hosts."""
    one, two = write_ids(tmp_path, count=401, shards=5), write_ids(tmp_path, count=60, shards=1, name="texts")
    values = HASHED | dict(paired_data=one, text_data=f"{one}@2,{two}@1")
    config = make_config(**values)
    streams = Streams(config)
    steps, cut = list(range(40)), int(np.random.default_rng().integers(1, 39))
    expected = hashlib.sha256()
    for step in steps:
        for name, task in (("paired_data", "t2i"), ("paired_data", "i2t"), ("text_data", "t2t")):
            ids = ids_of(streams, name, step)[task]
            expected.update(np.where(ids < 401, ids, ids - 401).tobytes())
    expected = expected.hexdigest()
    for num_hosts in (1, 2, 4, 8):
        assert digest(config, steps, num_hosts) == expected
    for workers in (0, 1, 4):
        assert digest(make_config(**values, num_workers=workers), steps, ahead=3) == expected
    first, second = digest(config, steps[:cut], 8), digest(config, steps[cut:], 2, ahead=2)
    assert first == digest(config, steps[:cut]) and second == digest(config, steps[cut:])
    assert digest(make_config(**values, seed=8), steps) != expected


@pytest.fixture
def reads(monkeypatch):
    """What is read from storage, (path, offset) of each."""
    found, read_range = [], storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda *place: found.append(place[:2]) or read_range(*place))
    return found


@pytest.mark.parametrize("num_hosts", [1, 4])
def test_blocks_are_read_once_an_epoch(tmp_path, reads, num_hosts):
    """But for those that two lanes share: one begins with them, the other ends with them."""
    config = make_config(paired_data=write_ids(tmp_path, count=2400, shards=4), t2i_batch=16, i2t_batch=16,
                         block_bytes=3000, shuffle_blocks=1, read_ahead_mib=0)  # fmt: skip
    hosts = [Streams(config, host, num_hosts) for host in range(num_hosts)]
    blocks = len(hosts[0].sources["paired_data"]._table.size)
    reads.clear()
    for streams in hosts:
        for step in range(75):
            streams.batch(step)
    assert blocks == len(set(reads)) > 60
    assert len(reads) <= blocks + 16 + 2  # hardly ever one that waited long for its last record


def test_blocks_are_read_ahead(tmp_path, reads):
    pattern = write_ids(tmp_path, count=1600, shards=4)
    streams = Streams(make_config(paired_data=pattern, block_bytes=200, read_ahead_mib=1))
    streams.reader.hold(1 << 20)
    ids = [np.concatenate(list(ids_of(streams, "paired_data", step).values())) for step in range(5)]
    table = streams.sources["paired_data"]._table
    places = [{(table.paths[table.shard[block]], int(table.offset[block])) for block in table.block_of(some)}
              for some in ids]  # fmt: skip
    for step in (0, 1):
        streams.batch(step)
        for asked in list(streams.reader._blocks.values()):
            asked.result()
        assert places[2 * step + 1] | places[2 * step + 2] <= set(reads)
    reads.clear()
    streams.batch(2)
    assert not places[2] & set(reads)
