"""Which record stands where: a stream is an endless sequence of ids, a pure function of (seed, name, position).

A dataset is cut into blocks of consecutive records, each read at once. An epoch's list takes the blocks in an order of
its own, joins a few of them at a time to a window, and permutes the records of each window. Permutations are computed
for any place directly, by a generalised Feistel network with cycle walking (Black and Rogaway 2002), so that any step
is reached without those before it; all that is kept is, for each block, where it begins in the epoch's list.

Lanes: the epoch's list is cut into G stretches of equal length, and the positions of a stream take from them in turn.
The rows of a batch are laid out lane by lane, so that a host, whose rows are a contiguous part, reads the blocks of its
lanes and no others. G depends on the batch and never on the number of hosts, so neither does the order. Two lanes share
the window at which their stretches meet: with K blocks, W of them a window, H hosts, an epoch reads at most K + G W
blocks where H divides G, and never more than H K.

Shapes: P positions, B rows of a step, K blocks, D datasets.
"""

import hashlib
import math

import numpy as np

NUM_ROUNDS = 4
MAX_LANES = 64


def num_lanes(batch_sizes):
    """G: the largest number up to MAX_LANES that divides all batch sizes, and so has each host in lanes of its own
    where the number of hosts divides it, too."""
    common = math.gcd(*batch_sizes)
    return max(lanes for lanes in range(1, MAX_LANES + 1) if common % lanes == 0)


def positions(step, batch_sizes, lanes):
    """Per batch size int64 [B], the places in the stream that the rows of a step have, lane after lane.

    All sizes together take the places from step * sum(batch_sizes) on; each must be a multiple of `lanes`.
    """
    ends = step * sum(batch_sizes) + np.cumsum(batch_sizes, dtype=np.int64)
    return [np.arange(end - size, end).reshape(-1, lanes).T.ravel()
            for end, size in zip(ends, batch_sizes, strict=True)]  # fmt: skip


class Order:
    """The order of one dataset.

    Args:
      seed, name: what the order is drawn from.
      counts: int [K], the records of each block; ids number all records through.
      window: how many blocks have their records mixed.
      lanes: G.
    """

    def __init__(self, seed, name, counts, window, lanes):
        self._seed, self._name, self._window, self._lanes = seed, name, window, lanes
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])  # id of each block's first record
        self.num_records, self._tables = int(self._first[-1]), {}

    def ids(self, positions):
        """int64 [P], the ids at any positions; each id once in every epoch of num_records positions."""
        positions = np.asarray(positions, np.int64)
        epochs, places = np.divmod(positions, self.num_records)
        ids = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            ids[here] = self._ids(epoch, self._in_list(places[here]))
        return ids

    def _in_list(self, places):
        rows, lanes = np.divmod(places, self._lanes)
        length, longer = divmod(self.num_records, self._lanes)  # the first `longer` lanes have one record more
        return lanes * length + np.minimum(lanes, longer) + rows

    def _ids(self, epoch, places):
        blocks, starts = self._table(epoch)
        windows = (np.searchsorted(starts, places, "right") - 1) // self._window
        low = starts[windows * self._window]
        high = starts[np.minimum((windows + 1) * self._window, len(blocks))]
        keys = _mix(_key(self._seed, self._name, epoch, "records") ^ windows.astype(np.uint64))
        mixed = low + _permute(keys, places - low, high - low)
        turns = np.searchsorted(starts, mixed, "right") - 1
        return self._first[blocks[turns]] + mixed - starts[turns]

    def _table(self, epoch):
        """The blocks in the epoch's order, int64 [K], and where each begins in its list, int64 [K + 1]."""
        found = self._tables.get(epoch)
        if found is None:
            count = len(self._first) - 1
            blocks = _permute(_key(self._seed, self._name, epoch, "blocks"), np.arange(count), count)
            found = blocks, np.concatenate([[0], np.cumsum(np.diff(self._first)[blocks])])
            newest = list(self._tables.items())[-1:]  # batches lie in two epochs at the most
            self._tables = dict([*newest, (epoch, found)])
        return found


class Mixture:
    """Several datasets in one stream, in fixed shares: every lane turns through them, each lane from another slot on.

    Args:
      orders: D of `Order`, all with `lanes`.
      weights: D whole numbers above 0; of sum(weights) records in a lane, that many come from each dataset.
      lanes: G.
    """

    def __init__(self, orders, weights, lanes):
        self._orders, self._lanes, self._weights = orders, lanes, np.array(weights)
        self._first = np.cumsum([0, *(order.num_records for order in orders)])
        evenly = [((2 * i + 1) / weight, dataset) for dataset, weight in enumerate(weights) for i in range(weight)]
        self._slots = np.array([dataset for _, dataset in sorted(evenly)])
        taken = self._slots[:, None] == np.arange(len(orders))
        self._before = np.concatenate([np.zeros((1, len(orders)), np.int64), np.cumsum(taken, 0)])

    def ids(self, positions):
        """int64 [P], the ids at any positions, the datasets numbered through; each dataset goes by its own epochs."""
        rows, lanes = np.divmod(np.asarray(positions, np.int64), self._lanes)
        datasets = self._slots[(rows + lanes) % len(self._slots)]
        places = self._rank(rows + lanes, datasets) - self._rank(lanes, datasets)
        places = places * self._lanes + lanes
        ids = np.empty_like(places)
        for dataset, order in enumerate(self._orders):
            here = datasets == dataset
            ids[here] = self._first[dataset] + order.ids(places[here])
        return ids

    def _rank(self, turns, datasets):
        """How many of the slots before each turn are of a dataset."""
        rounds, slots = np.divmod(turns, len(self._slots))
        return rounds * self._weights[datasets] + self._before[slots, datasets]


def coins(seed, stream_name, positions):
    """bool [P], fair coin tosses, one a position."""
    return _mix(np.asarray(positions, np.uint64) ^ _key(seed, stream_name, "coins")) >> np.uint64(63) == 1


def _key(*parts):
    """A uint64 from the parts. Not `hash`: that differs between processes."""
    return np.frombuffer(hashlib.sha256(repr(parts).encode()).digest(), np.uint64)[0]


def _mix(values):
    """The finaliser of splitmix64: uint64 -> uint64, each bit in depends on each bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _permute(keys, values, sizes):
    """Permutations of [0, size), each chosen by its key, applied to int64 [P] values; keys and sizes one or P each.

    Values are places in a table that is as good as square, rows and columns turned by one another. It has hardly more
    places than the size; those that leave the range go round again until they are back in it.
    """
    out = np.array(values, np.uint64)
    sizes = np.broadcast_to(np.asarray(sizes, np.uint64), out.shape)
    heights = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    widths = (sizes + heights - np.uint64(1)) // heights
    keys = np.broadcast_to(keys, out.shape)
    outside = np.arange(len(out))
    while len(outside):
        key, height, width = keys[outside], heights[outside], widths[outside]
        row, column = np.divmod(out[outside], width)
        for _ in range(NUM_ROUNDS):
            key = _mix(key + np.uint64(0x9E3779B97F4A7C15))
            row = (row + _turn(column ^ key)) % height
            column = (column + _turn(row ^ ~key)) % width
        out[outside] = row * width + column
        outside = outside[out[outside] >= sizes[outside]]
    return out.astype(np.int64)


def _turn(values):
    """63 random bits, so that a row or column may be added."""
    return _mix(values) >> np.uint64(1)
