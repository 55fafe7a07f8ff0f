"""Damaged records in real shards: none is trained on, each is named by file and offset, and counted once.

ITIT_FAULT_ROUNDS sets how many are made (60); `tests/faults.sh` makes 1,000.
"""

import os
import pathlib
import struct
import time
import zlib

import numpy as np
import pytest
from absl import logging

from itit.data import records, shard_index
from itit.data.streams import Streams
from tests.data.test_streams import ids_record, make_config, numbers, png, write
from tests.helpers.faults import report

ROUNDS = int(os.environ.get("ITIT_FAULT_ROUNDS", 60))
A_DATASET = 30  # damaged shards of one


def picture():
    return png(np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8))


def bomb(rng):
    """A header of a PNG or a GIF with up to 2 ** 32 pixels and next to nothing behind it."""
    width, height = (int(side) for side in rng.integers(8_000, 65_000, 2))
    if rng.integers(2):
        frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x00;"
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def wrong_payload(rng, number):
    """A whole record that cannot be used."""
    changes = [
        dict(image=None), dict(image=np.arange(4)), dict(image=np.ones(4, np.float32)), dict(image=b""),
        dict(image=picture()[: int(rng.integers(1, 60))]), dict(image=rng.bytes(100)), dict(image=bomb(rng)),
        dict(text_ids=None), dict(text_ids=b"words"), dict(text_ids=np.ones(8, np.float32)), dict(text_ids=[5, 1]),
        dict(text_ids=np.full(8, 2**40)), dict(text_ids=np.full(8, -1)), dict(text_ids=np.zeros(8, int)),
    ]  # fmt: skip
    if rng.integers(8) == 0:
        return b"\x0a\xff" + rng.bytes(40)
    return ids_record(number, **({"image": picture(), "image_ids": None} | changes[rng.integers(len(changes))]))


def flip(data, begin, end, rng):
    data[int(rng.integers(begin, end))] ^= 1 << int(rng.integers(8))


def damage(path, place, kind, rng):
    """Damages the record at `place`, (offset, length), in the bytes of the file."""
    data, (offset, length) = bytearray(pathlib.Path(path).read_bytes()), place
    payload = offset + records.HEADER
    if kind == "payload":
        flip(data, payload, payload + length + records.FOOTER, rng)
    elif kind == "header":
        flip(data, offset, payload, rng)
    elif kind == "truncation":
        del data[int(rng.integers(offset + 1, payload + length + records.FOOTER)) :]
    elif kind == "length":
        size = struct.pack("<Q", int(rng.integers(records.MAX_LENGTH + 1, 2**63)))
        data[offset:payload] = size + struct.pack("<I", records.masked_crc(size))
    pathlib.Path(path).write_bytes(data)


def damaged_shard(path, first, rng):
    """Writes a shard with one damaged record. Returns how many it held, the numbers of the sound ones, and
    `path@offset` of the damaged one."""
    kind = rng.choice(["payload", "header", "truncation", "length", "content"])
    count, indexed = int(rng.integers(1, 9)), bool(rng.integers(2))
    bad = int(rng.integers(count))
    items = [ids_record(first + n, image=picture(), image_ids=None) for n in range(count)]
    if kind == "content":
        items[bad] = wrong_payload(rng, first + bad)
    write(path, items)
    places = records.index(path)
    if indexed:
        shard_index.write(path, places)
    damage(path, places[bad].tolist(), kind, rng)
    # Nobody can tell where the next one begins, unless an index of that very file does.
    ends = kind == "truncation" or kind in ("header", "length") and not indexed
    sound = set(range(first, first + count)) - set(range(first + bad, first + count if ends else first + bad + 1))
    return count, sound, f"{path}@{places[bad, 0]}: "


def check_dataset(folder, rounds, rng, lines):
    """So many damaged shards and a sound one, over two epochs. `lines` receives what is logged."""
    first, sound, places = 10, set(range(10)), []
    write(folder / "shard-sound", [ids_record(n, image=picture(), image_ids=None) for n in range(10)])
    for number in range(rounds):
        count, kept, place = damaged_shard(str(folder / f"shard-{number:02}"), first, rng)
        first, sound, places = first + count, sound | kept, [*places, place]
    values = dict(paired_data=f"{folder}/shard-*", block_bytes=int(rng.integers(1, 3000)), t2i_batch=16, i2t_batch=8)
    streams = Streams(make_config(**values, max_bad_records=rounds))
    steps = -(-2 * len(streams.sources["paired_data"]) // 24)
    seen = [numbers(batch[f"{task}/text_ids"]) for batch in map(streams.batch, range(steps)) for task in ("t2i", "i2t")]
    assert set(np.concatenate(seen).tolist()) == sound
    assert streams.num_bad == len(lines) == rounds
    for place in places:
        assert sum(line.startswith(f"damaged record: {place}") for line in lines) == 1, (place, lines)
    with pytest.raises(ValueError, match=rf"@\d+: .*damaged records so far: {rounds}, above --max_bad_rec") as caught:
        streams = Streams(make_config(**values, max_bad_records=rounds - 1))
        [streams.batch(step) for step in range(steps)]
    assert "\n" not in str(caught.value)


def test_no_damaged_record_is_trained_on(tmp_path, monkeypatch):
    seed, began, lines = np.random.SeedSequence().entropy, time.monotonic(), []
    print("seed", seed)  # pytest shows it where a test fails
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    for start in range(0, ROUNDS, A_DATASET):
        lines.clear()
        (tmp_path / str(start)).mkdir()
        check_dataset(tmp_path / str(start), min(A_DATASET, ROUNDS - start), rng, lines)
    report("damaged records", ROUNDS, 0, began, "each named once, none trained on, the end beyond the budget")
