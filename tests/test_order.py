"""The order of records: a permutation an epoch, any step directly, the same for all hosts."""

import collections

import numpy as np
import pytest

from itit.data import order


@pytest.mark.parametrize("num_records", [1, 2, 3, 5, 16, 17, 255, 1000, 4097])
def test_each_id_once_an_epoch(num_records):
    seed, batch = int(np.random.default_rng().integers(2**31)), 3 + num_records // 10
    steps = -(-3 * num_records // batch)
    ids = np.concatenate([order.sample_ids(seed, "texts", step, batch, num_records) for step in range(steps)])
    for epoch in range(3):
        assert sorted(ids[epoch * num_records : (epoch + 1) * num_records]) == list(range(num_records))


def test_batch_size_does_not_change_the_sequence():
    long = order.sample_ids(3, "pairs", 0, 600, 101)
    for batch in (1, 8, 60):
        np.testing.assert_array_equal(
            np.concatenate([order.sample_ids(3, "pairs", step, batch, 101) for step in range(600 // batch)]),
            long[: 600 // batch * batch],
        )


def test_seeds_streams_and_epochs_differ():
    def ids(seed, name, step):
        return tuple(order.sample_ids(seed, name, step, 50, 50))

    assert len({ids(seed, name, step) for seed in range(5) for name in "abc" for step in range(4)}) == 60


def test_the_order_is_well_shuffled():
    """Over many epochs every id stands everywhere equally often, and neighbours are unrelated (chi square)."""
    size, epochs = 12, 2400
    ids = order.ids_at(1, "x", np.arange(size * epochs), size).reshape(epochs, size)
    for counts in (ids[:, 0], ids[:, -1], (ids[:, 1] - ids[:, 0]) % size):
        values = [count for _, count in sorted(collections.Counter(counts.tolist()).items())]
        expected = epochs / len(values)
        assert len(values) in (size, size - 1)
        assert sum((value - expected) ** 2 / expected for value in values) < 40
    large = order.ids_at(2, "x", np.arange(100_000), 10**12)
    assert len(set(large.tolist())) == 100_000 and abs(large.mean() / 10**12 - 0.5) < 0.01


def test_known_values_never_change():
    """A change of these would change the data of every run that resumes."""
    np.testing.assert_array_equal(order.sample_ids(0, "paired_data", 2, 6, 1000), [719, 448, 10, 560, 182, 369])


def test_coins_are_fair_and_fixed():
    tosses = order.coins(5, "x", np.arange(40_000))
    assert abs(tosses.mean() - 0.5) < 0.02 and abs((tosses[1:] == tosses[:-1]).mean() - 0.5) < 0.02
    np.testing.assert_array_equal(tosses[100:200], order.coins(5, "x", np.arange(100, 200)))
    assert (tosses != order.coins(6, "x", np.arange(40_000))).any()
