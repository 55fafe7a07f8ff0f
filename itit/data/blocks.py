"""Shards cut into blocks, and a reader that holds a bounded number of them.

A block is what lies in a shard from one record to another, about block_bytes long. Where its records lie in it, its own
framing tells; so what a host keeps of a dataset is 28 bytes a block, and nothing a record.

Shapes: K blocks, R records of a block.
"""

import collections
import concurrent.futures
import threading

import numpy as np

from itit import storage
from itit.data import records, shard_index

NUM_HEADS = 16


class Table:
    """The blocks of shards, in the order of `paths`, and the numbers of their records.

    Args:
      paths: of the shards.
      block_bytes: a block takes the records that begin in so many bytes of its shard.
      each: `map`, or that of a pool.

    `first`: int64 [K + 1], number of the first record of each block, and of all; `shard`: int32 [K]; `offset`, `size`:
    int64 [K], bytes. `heads`: per shard the offsets and lengths of its first records, int64 [<= 16, 2]. `broken` lists
    a BadRecord for each file whose framing, or whose index, is damaged; records behind a broken framing are left out.
    """

    def __init__(self, paths, block_bytes, each=map):
        self.paths = paths
        cuts = list(each(lambda path: _cut(path, block_bytes), paths))
        counts, offsets, sizes, self.heads, broken = zip(*cuts, strict=True)
        self.first = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        self.shard = np.repeat(np.arange(len(paths), dtype=np.int32), [len(part) for part in counts])
        self.offset, self.size = np.concatenate(offsets), np.concatenate(sizes)
        self.broken = [error for error in broken if error]

    def __len__(self):
        return int(self.first[-1])

    def block_of(self, numbers):
        """The block of each record: int [P] -> int64 [P], or one of one."""
        return np.searchsorted(self.first, numbers, "right") - 1

    def read(self, block):
        """The `Block`, from storage."""
        path, offset, size = self.paths[self.shard[block]], int(self.offset[block]), int(self.size[block])
        data = storage.read_range(path, offset, size)
        spans, broken = records.walk(path, offset, data)
        count = int(self.first[block + 1] - self.first[block])
        if len(spans) != count:
            broken = broken or records.BadRecord(path, offset + len(data), "the file has changed since it was opened")
            index = _index(path)[0]
            if index is not None:  # it knows where the records behind the damaged one lie
                spans = index[(index[:, 0] >= offset) & (index[:, 0] < offset + size)]
        return Block(path, offset, data, spans[:count].tolist(), broken)


class Block:
    """The bytes of a block and the places of its records; those behind a damaged one may have no known place."""

    def __init__(self, path, offset, data, spans, broken):
        self._path, self._offset, self._data, self._spans, self._broken = path, offset, data, spans, broken

    def payload(self, number):
        """Of the record with this number in the block. Raises BadRecord."""
        if number >= len(self._spans):
            raise self._broken
        offset, length = self._spans[number]
        begin = offset - self._offset
        return records.payload(
            self._path, offset, length, self._data[begin : begin + records.HEADER + length + records.FOOTER]
        )

    def bad(self, number, cause):
        """The BadRecord that says that `cause` is wrong with this record."""
        return records.BadRecord(self._path, self._spans[number][0], cause)


def _index(path):
    """The places of all records of a shard, or None; and the BadRecord of a damaged index."""
    try:
        return shard_index.read(path), None
    except records.BadRecord as error:
        return None, error


def _cut(path, block_bytes):
    """Per block of a shard its records, offset and bytes, int64 each; the first records; what is broken or None."""
    spans, broken = _index(path)
    if spans is None:
        spans, damage = records.scan(path)
        broken = damage or broken
    begins = np.flatnonzero(np.diff(spans[:, 0] // block_bytes, prepend=-1))
    ends = np.append(begins[1:], len(spans))[: len(begins)]
    offsets, last = spans[begins, 0], spans[ends - 1]
    sizes = last.sum(1) + records.HEADER + records.FOOTER - offsets
    return ends - begins, offsets, sizes, spans[:NUM_HEADS].copy(), broken


class Reader:
    """Reads blocks, several at a time, and holds those lately used.

    Args:
      num_requests: reads under way at a time.
      ahead_bytes: blocks that were asked for and not yet used may take this, and one block more.

    `map` runs other small reads on the same threads. All may be called from any thread.
    """

    def __init__(self, num_requests, ahead_bytes):
        self._pool = concurrent.futures.ThreadPoolExecutor(num_requests, "blocks")
        self.map = self._pool.map
        self._ahead_bytes, self._held_bytes, self._lock = ahead_bytes, 0, threading.Lock()
        self._blocks = collections.OrderedDict()  # (table, block) -> future; what was used last is last
        self._used, self._ahead = 0, {}  # bytes of those used; (table, block) -> bytes of those that are not
        self.num_reads = self.num_bytes = 0

    def hold(self, num_bytes):
        """Makes room for so many further bytes of blocks in use."""
        self._held_bytes += num_bytes

    def has_room(self):
        """Whether more blocks may be asked for."""
        with self._lock:
            return sum(self._ahead.values()) < self._ahead_bytes

    def ask(self, table, blocks):
        """Begins to read blocks that will be used."""
        with self._lock:
            for key in ((table, block) for block in blocks):
                if key not in self._blocks:
                    self._start(key)
                    self._ahead[key] = int(table.size[key[1]])

    def forget(self):
        """What was asked for and not used so far will not be: it goes before anything else."""
        with self._lock:
            for key, size in self._ahead.items():
                self._used += size
                self._blocks.move_to_end(key, last=False)
            self._ahead.clear()

    def get(self, table, block):
        """The `Block`, waited for. Raises OSError where it cannot be read, then and only then."""
        key = table, block
        with self._lock:
            if key not in self._blocks:
                self._start(key)
                self._used += int(table.size[block])
            self._used += self._ahead.pop(key, 0)
            self._blocks.move_to_end(key)
            future = self._blocks[key]
            self._make_room(key)
        try:
            return future.result()
        except OSError:
            with self._lock:
                if self._blocks.get(key) is future:
                    del self._blocks[key]
                    self._used -= int(table.size[block])
            raise

    def _start(self, key):
        table, block = key
        self._blocks[key] = self._pool.submit(table.read, block)
        self.num_reads += 1
        self.num_bytes += int(table.size[block])

    def _make_room(self, kept):
        for key in list(self._blocks) if self._used > self._held_bytes else ():
            if self._used <= self._held_bytes:
                return
            if key != kept and key not in self._ahead:
                del self._blocks[key]
                self._used -= int(key[0].size[key[1]])
