"""Shards in blocks: nothing lost between them, damage kept to its record, and a reader that holds what it should."""

import pathlib
import re
import threading

import numpy as np
import pytest

from itit import storage
from itit.data import records, shard_index
from itit.data.blocks import Reader, Table
from tests.data.test_records import write


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)  # pytest shows it where a test fails
    return np.random.default_rng(seed)


def shards(rng, folder, count=4):
    """Paths of shards of random records, one empty, and all records."""
    items = [[rng.bytes(int(size)) for size in rng.integers(0, 400, rng.integers(1, 40))] for _ in range(count)]
    items[1] = []
    paths = [write(folder / f"shard-{number}", part) for number, part in enumerate(items)]
    return paths, sum(items, [])


@pytest.mark.parametrize("indexed", [False, True])
def test_blocks_cover_shards(tmp_path, rng, indexed):
    paths, items = shards(rng, tmp_path)
    if indexed:
        for path in paths:
            shard_index.write(path, records.index(path))
    for block_bytes in (1, 500, int(rng.integers(1, 3000)), 1 << 20):
        table = Table(paths, block_bytes)
        assert len(table) == len(items) and table.broken == []
        assert table.size.sum() == sum(storage.size(path) for path in paths)
        assert (table.size <= block_bytes + 400 + 16).all() and (np.diff(table.first) > 0).all()
        assert block_bytes < 1 << 20 or table.shard.tolist() == [0, 2, 3]
        for number, item in enumerate(items):
            block = int(table.block_of(number))
            assert table.read(block).payload(number - table.first[block]) == item


def test_an_index_saves_the_walk(tmp_path, rng, monkeypatch):
    paths, items = shards(rng, tmp_path)
    for path in paths:
        shard_index.write(path, records.index(path))
    monkeypatch.setattr(records, "scan", None)
    assert len(Table(paths, 1000)) == len(items)


def flip(path, place):
    data = bytearray(pathlib.Path(path).read_bytes())
    data[place] ^= 16
    pathlib.Path(path).write_bytes(data)


def test_damage_since_the_start_is_found(tmp_path):
    """With an index one record is lost; without, those behind a broken framing up to the next block, by its name."""
    items = [bytes([number]) * 50 for number in range(30)]
    path = write(tmp_path / "a", items)
    table, place = Table([path], 10 * 66), int(records.index(path)[13, 0])
    shard_index.write(path, records.index(path))
    flip(path, place + 3)

    def lost():
        found = []
        for number, item in enumerate(items):
            block = int(table.block_of(number))
            try:
                assert table.read(block).payload(number - table.first[block]) == item
            except records.BadRecord as error:
                assert re.search(rf"a@{place}: the checksum of the length is wrong", str(error))
                found.append(number)
        return found

    assert lost() == [13]
    pathlib.Path(shard_index.path_of(path)).unlink()
    assert lost() == list(range(13, 20))
    assert str(table.read(0).bad(7, "cause")) == f"{path}@{7 * 66}: cause"


def test_a_file_that_became_shorter(tmp_path):
    items = [bytes([number]) * 50 for number in range(30)]
    path = write(tmp_path / "a", items)
    table = Table([path], 10 * 66)
    pathlib.Path(path).write_bytes(pathlib.Path(path).read_bytes()[: 12 * 66 + 20])
    for number in range(30):
        block = int(table.block_of(number))
        if number < 12:
            assert table.read(block).payload(number - table.first[block]) == items[number]
        else:
            with pytest.raises(records.BadRecord, match=r"a@\d+: (the file ends inside|the file has changed)"):
                table.read(block).payload(number - table.first[block])


def test_a_damaged_index_is_named_and_not_used(tmp_path):
    path = write(tmp_path / "a", [b"one", b"two"])
    shard_index.write(path, records.index(path))
    flip(shard_index.path_of(path), 30)
    table = Table([path], 100)
    assert len(table) == 2 and len(table.broken) == 1 and ".a.index@0" in str(table.broken[0])


class Blocks:
    """In the place of a Table: block n is n bytes long, and read when its gate opens."""

    def __init__(self, gate=None):
        self.size, self.seen, self.gate, self.fails = np.arange(100), [], gate, set()

    def read(self, block):
        self.seen.append(block)
        if self.gate:
            self.gate.wait(60)
        if block in self.fails:
            raise OSError(5, "gone", f"block {block}")
        return f"block {block}"


def test_several_reads_are_under_way_at_once():
    gate = threading.Barrier(3)
    table, reader = Blocks(gate), Reader(3, 100)
    reader.ask(table, [1, 2, 3])
    reader.ask(table, [2, 3])
    assert [reader.get(table, block) for block in (3, 1, 2)] == ["block 3", "block 1", "block 2"]
    assert sorted(table.seen) == [1, 2, 3]


def test_read_ahead_is_bounded():
    table, reader = Blocks(), Reader(2, 50)
    reader.hold(1000)
    assert reader.has_room()
    reader.ask(table, [20, 29])
    assert reader.has_room()
    reader.ask(table, [1])
    assert not reader.has_room()
    reader.get(table, 20)
    assert reader.has_room()
    reader.ask(table, [90])
    assert not reader.has_room()
    reader.forget()
    assert reader.has_room()
    assert not Reader(2, 0).has_room()


def test_what_was_used_last_is_held():
    table, reader = Blocks(), Reader(1, 1000)
    reader.hold(100)
    for block in (30, 31, 32, 30):
        reader.get(table, block)
    reader.ask(table, [60])  # not used yet: counts for read-ahead alone
    reader.get(table, 33)  # 31 goes
    for block in (30, 32, 33, 60, 31):
        reader.get(table, block)
    assert table.seen == [30, 31, 32, 60, 33, 31]
    reader.get(table, 99)  # alone it takes all the room
    reader.get(table, 99)
    reader.ask(table, [50])
    reader.forget()
    reader.get(table, 1)  # what nobody will use goes first
    reader.get(table, 99)
    assert table.seen[6:] == [99, 50, 1]


def test_what_cannot_be_read_is_tried_again():
    table, reader = Blocks(), Reader(1, 100)
    reader.hold(100)
    table.fails = {7}
    reader.ask(table, [7])
    for _ in range(2):
        with pytest.raises(OSError, match="block 7"):
            reader.get(table, 7)
    table.fails = set()
    assert reader.get(table, 7) == "block 7" and reader._used == 7


def test_many_threads(rng):
    """Each gets what it asks for, and the count of bytes stays right."""
    table, reader = Blocks(), Reader(4, 200)
    reader.hold(300)

    def work(seed):
        for block in np.random.default_rng(seed).integers(0, 100, 300).tolist():
            reader.ask(table, [block // 2])
            assert reader.get(table, block) == f"block {block}"

    threads = [threading.Thread(target=work, args=(int(rng.integers(2**31)),)) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    held = [block for _, block in reader._blocks]
    assert reader._used + sum(reader._ahead.values()) == sum(held)
    assert reader._used <= 300
