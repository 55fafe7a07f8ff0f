"""Shards of bounded size: what they hold, and what a writer that goes on takes over."""

import hashlib

import numpy as np
import pytest

from itit.data import records, shard_index
from tools.data.shard_writer import ShardWriter, fingerprint


def items(count):
    rng = np.random.default_rng()
    return [(n, [f"{n}/{k}" for k in range(rng.integers(1, 4))]) for n in range(count)]


def examples_of(keys):
    return [records.encode_example({"key": key, "text": key * 5}) for key in keys]


def fill(writer, wanted, fail_at=None):
    with writer:
        for position, keys in wanted:
            if position == fail_at:
                raise RuntimeError
            if position % 7 == 3:
                writer.add_damaged(position, f"cause {position}")
            elif position % 7 == 4:
                writer.add_moved(position)
                writer.add_empty(position, position)
            else:
                writer.add(position, keys, examples_of(keys))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_are_bounded_indexed_and_in_order(tmp_path):
    wanted, writer = items(60), ShardWriter(str(tmp_path), "part", 400)
    fill(writer, wanted)
    found = []
    for number, shard in enumerate(writer.shards):
        path = tmp_path / shard["name"]
        assert shard["name"] == f"part-{number:05d}.tfrecord" and path.stat().st_size == shard["bytes"] <= 400
        spans = records.index(str(path))
        np.testing.assert_array_equal(shard_index.read(str(path)), spans)
        keys = [records.decode_example(records.read(str(path), *s))["key"][0].decode() for s in spans.tolist()]
        assert len(keys) == shard["records"] and shard["fingerprint"] == f"{fingerprint(keys):032x}"
        found.append(keys)
    expected = [keys for position, keys in wanted if position % 7 not in (3, 4)]
    assert sum(found, []) == sum(expected, []) and len(found) > 5
    ends = {keys[-1] for keys in expected}
    assert all(keys[-1] in ends for keys in found), "the records of an item stay together"
    assert writer.summary()["records"] == sum(map(len, expected))
    assert writer.summary()["fingerprint"] == f"{fingerprint(sum(expected, [])):032x}"
    assert [position for position, _ in writer.damaged] == [n for n in range(60) if n % 7 == 3]


def test_one_item_may_be_larger_than_a_shard(tmp_path):
    wanted, writer = items(3), ShardWriter(str(tmp_path), "part", 10)
    fill(writer, wanted)
    assert [shard["records"] for shard in writer.shards] == [len(keys) for _, keys in wanted]


def test_a_writer_goes_on_where_another_failed(tmp_path):
    wanted = items(60)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    fill(ShardWriter(str(whole), "part", 400), wanted)
    for fail_at in sorted(np.random.default_rng().choice(60, 6, replace=False).tolist()):
        writer = ShardWriter(str(parts), "part", 400)
        before = contents(parts)
        with pytest.raises(RuntimeError):
            fill(writer, wanted[writer.position :], fail_at if fail_at >= writer.position else writer.position)
        assert before.items() <= contents(parts).items() and not any(".tmp" in name for name in contents(parts))
    writer = ShardWriter(str(parts), "part", 400)
    fill(writer, wanted[writer.position :])
    assert contents(parts) == contents(whole)
    assert sorted(writer.damaged) == [(n, f"cause {n}") for n in range(60) if n % 7 == 3]
    assert sorted(writer.empty) == [(n, n) for n in range(60) if n % 7 == 4]
    assert sorted(writer.moved) == [(n,) for n in range(60) if n % 7 == 4]


def test_fingerprints_tell_sets_apart_whatever_their_order():
    keys = [str(n) for n in np.random.default_rng().integers(2**40, size=50)]
    assert fingerprint(keys) == fingerprint(keys[::-1]) != fingerprint(keys[1:])
    assert (fingerprint(keys[:20]) + fingerprint(keys[20:])) % 2**128 == fingerprint(keys)
    digest = hashlib.blake2b(b"a", digest_size=16).digest()
    assert fingerprint(["a"]) == int.from_bytes(digest, "little")
