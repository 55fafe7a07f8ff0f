"""Which record stands where: a stream is an endless sequence of ids, a pure function of (seed, name, position).

Each epoch is a permutation of its own. It is computed for any position directly, by a Feistel network over the ids with
cycle walking (Black and Rogaway 2002), so that nothing as long as the stream is ever stored or repeated on resume.

Shapes: B rows of a step.
"""

import hashlib

import numpy as np

NUM_ROUNDS = 8


def positions(step, batch_size):
    """int64 [B], the places in the stream that a step takes: batch after batch, epochs joined end to end."""
    return np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)


def ids_at(seed, stream_name, positions, num_records):
    """int64 [B], the ids in [0, num_records) at any positions; each id once in every epoch of num_records positions."""
    positions = np.asarray(positions, np.int64)
    epochs, places = np.divmod(positions, num_records)
    ids = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        ids[here] = _permute(_key(seed, stream_name, f"epoch {epoch}"), places[here].astype(np.uint64), num_records)
    return ids


def sample_ids(seed, stream_name, step, batch_size, num_records):
    """int64 [B], the ids of one step, the same on every host. An epoch may end inside a batch."""
    return ids_at(seed, stream_name, positions(step, batch_size), num_records)


def coins(seed, stream_name, positions):
    """bool [B], fair coin tosses, one a position."""
    return _mix(np.asarray(positions, np.uint64) ^ _key(seed, stream_name, "coins")) >> np.uint64(63) == 1


def _key(*parts):
    """A uint64 from the parts. Not `hash`: that differs between processes."""
    return np.frombuffer(hashlib.sha256(repr(parts).encode()).digest(), np.uint64)[0]


def _mix(values):
    """The finaliser of splitmix64: uint64 -> uint64, each bit in depends on each bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _permute(key, values, size):
    """A permutation of [0, size) applied to uint64 values. The network works on the next even number of bits, so values
    that leave the range go round again until they are back in it: 4 times at the most on average."""
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    round_keys = _mix(key + np.arange(NUM_ROUNDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    out, outside = values.copy(), np.arange(len(values))
    while len(outside):
        left, right = out[outside] >> half, out[outside] & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        out[outside] = left << half | right
        outside = outside[out[outside] >= size]
    return out.astype(np.int64)
