"""Where the records of a shard lie, in a small file beside it, so that nobody has to walk through the shard.

The index of DIR/NAME is DIR/.NAME.index; the leading dot keeps it out of every pattern that names shards. Records lie
one after another without gaps, so their lengths tell their offsets, too. All numbers are little endian:

    8 bytes      MAGIC
    uint64       bytes of the shard, which bind the index to it
    uint64       R, the number of records
    uint32 [R]   bytes of each payload
    uint32       CRC32C of all that stands before

R is the number of records of a shard.
"""

import os
import struct

import google_crc32c
import numpy as np

from itit import storage
from itit.data.records import FOOTER, HEADER, MAX_LENGTH, BadRecord

MAGIC = b"ITITIDX1"
HEAD = struct.Struct("<8sQQ")
CHECKSUM = struct.Struct("<I")


def path_of(shard):
    """The path of a shard's index."""
    folder, name = os.path.split(shard)
    return storage.join(folder, f".{name}.index")


def write(shard, spans):
    """Writes the index of a finished shard.

    Args:
      spans: int64 [R, 2], offset and payload length of every record, as `records.index` returns them.
    """
    lengths = np.asarray(spans, np.int64).reshape(-1, 2)[:, 1]
    data = HEAD.pack(MAGIC, int((lengths + HEADER + FOOTER).sum()), len(lengths)) + lengths.astype("<u4").tobytes()
    storage.write_bytes(path_of(shard), data + CHECKSUM.pack(google_crc32c.value(data)))


def read(shard):
    """int64 [R, 2], offset and payload length of every record; None where there is no index.

    Raises BadRecord, naming the index, where it is damaged or belongs to a shard of another size.
    """
    path = path_of(shard)
    # Four bytes a record, of sixteen and more in the shard: an index is never longer than that.
    most = storage.size(shard) + HEAD.size + CHECKSUM.size
    try:
        if storage.size(path) > most:
            raise BadRecord(path, 0, f"is the index of a larger shard than {shard}: remove it or the shard")
        data = storage.read_small(path, most)
    except FileNotFoundError:
        return None
    shard_size, lengths = _parse(path, data)
    found = storage.size(shard)
    if found != shard_size:
        raise BadRecord(path, 0, f"is the index of {shard_size} bytes, but {shard} has {found}: remove it or the shard")
    ends = np.cumsum(lengths + HEADER + FOOTER)
    return np.stack([ends - lengths - HEADER - FOOTER, lengths], 1)


def _parse(path, data):
    """Bytes of the shard, and int64 [R], the lengths."""
    if len(data) < HEAD.size + CHECKSUM.size or len(data) % 4 or not data.startswith(MAGIC):
        raise BadRecord(path, 0, "not an index of records")
    (checksum,) = CHECKSUM.unpack(data[-CHECKSUM.size :])
    if google_crc32c.value(data[: -CHECKSUM.size]) != checksum:
        raise BadRecord(path, 0, "the checksum of the index is wrong: remove it, and the shard is read without it")
    _, shard_size, count = HEAD.unpack(data[: HEAD.size])
    lengths = np.frombuffer(data[HEAD.size : -CHECKSUM.size], "<u4").astype(np.int64)
    if len(lengths) != count or (lengths > MAX_LENGTH).any() or (lengths + HEADER + FOOTER).sum() != shard_size:
        raise BadRecord(path, 0, "its lengths do not add up")
    return shard_size, lengths
