"""The shards of one split, filled one after another; what is finished stays when the writer is killed.

Beside DIR/SPLIT-0000i.tfrecord lie its index (see shard_index.py) and, until the whole is finished, a note
`.SPLIT-0000i.tfrecord.done`, which is written last and says how far the source was read: a shard with its note is
never written again.
"""

import hashlib
import json

from itit import storage
from itit.data import records, shard_index

MODULUS = 2**128


def fingerprint(keys):
    """A number of 128 bits that tells sets of ids apart: the sum of their hashes, in any order, in parts or at once."""
    digests = (hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest() for key in keys)
    return sum(int.from_bytes(digest, "little") for digest in digests) % MODULUS


class ShardWriter:
    """A context manager: a shard that is open when the block fails never appears.

    Args:
      folder, split: where the shards go and what their names begin with.
      shard_bytes: no shard has more, unless one item alone does.

    Attributes: `position`: items of the source before this one are in finished shards; `shards`: a dict for each
    finished one, `name`, `records`, `bytes`, `fingerprint` (of its ids); and of items that were to be in this split
    `damaged`: [(position, cause)], `empty`: [(position, how many of its texts are empty)], `moved`: [(position,)] of
    those without any text, which are in the split of pictures.
    """

    NOTED = ("damaged", "empty", "moved")

    def __init__(self, folder, split, shard_bytes):
        self._folder, self._split, self._shard_bytes = folder, split, shard_bytes
        self._writer, self.shards = None, []
        self.damaged, self.empty, self.moved = [], [], []
        self.position = 0
        while storage.exists(self._note()):
            note = json.loads(storage.read_bytes(self._note()))
            self.position = note.pop("position")
            for name in self.NOTED:
                getattr(self, name).extend(tuple(entry) for entry in note.pop(name, ()))
            self.shards.append(note)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self._close()
        elif self._writer:
            self._writer.__exit__(kind, error, trace)

    def add(self, position, keys, examples):
        """Appends the records of one item of the source, which stay together. Positions only grow."""
        size = sum(records.HEADER + len(example) + records.FOOTER for example in examples)
        if self._writer and self._writer.size + size > self._shard_bytes:
            self._close()
        if not self._writer:
            self._writer, self._fingerprint = records.RecordWriter(self._path()).__enter__(), 0
        for example in examples:
            self._writer.write(example)
        self._fingerprint = (self._fingerprint + fingerprint(keys)) % MODULUS
        self._next = position + 1

    def add_damaged(self, position, cause):
        """Notes an item that cannot be used."""
        self.damaged.append((position, cause))

    def add_empty(self, position, count):
        """Notes an item of whose texts some are empty."""
        self.empty.append((position, count))

    def add_moved(self, position):
        """Notes an item that is in the split of pictures after all."""
        self.moved.append((position,))

    def _path(self):
        return storage.join(self._folder, f"{self._split}-{len(self.shards):05d}.tfrecord")

    def _note(self):
        return storage.join(self._folder, f".{self._split}-{len(self.shards):05d}.tfrecord.done")

    def _close(self):
        """Ends the open shard, if there is one."""
        if not self._writer:
            return
        writer, self._writer = self._writer, None
        writer.__exit__(None, None, None)
        path, note = self._path(), self._note()
        shard_index.write(path, writer.spans)
        shard = {"name": path.rpartition("/")[2], "records": len(writer.spans), "bytes": writer.size,
                 "fingerprint": f"{self._fingerprint:032x}"}  # fmt: skip
        noted = {name: [entry for entry in getattr(self, name) if self.position <= entry[0] < self._next]
                 for name in self.NOTED}  # fmt: skip
        storage.write_bytes(note, json.dumps(shard | {"position": self._next} | noted).encode())
        self.shards.append(shard)
        self.position = self._next

    def summary(self):
        """What dataset.json says of the split."""
        total = sum(int(shard["fingerprint"], 16) for shard in self.shards) % MODULUS
        return {"records": sum(shard["records"] for shard in self.shards),
                "bytes": sum(shard["bytes"] for shard in self.shards),
                "fingerprint": f"{total:032x}", "shards": self.shards}  # fmt: skip
