"""The order of records: block by block and mixed, any step directly, the same for all hosts."""

import collections

import numpy as np
import pytest

from itit.data import order


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy
    print("seed", seed)  # pytest shows it where a test fails
    return np.random.default_rng(seed)


def draw(rng, **values):
    """An Order of random sizes, and the counts of its blocks."""
    counts = rng.integers(1, int(rng.integers(2, 60)), int(rng.integers(1, 40)))
    seed, window, lanes = int(rng.integers(2**31)), int(rng.integers(1, 7)), int(rng.integers(1, 70))
    return order.Order(**(dict(seed=seed, name="x", counts=counts, window=window, lanes=lanes) | values)), counts


def test_each_id_once_an_epoch(rng):
    for _ in range(60):
        made, counts = draw(rng)
        total = counts.sum()
        ids = made.ids(np.arange(3 * total)).reshape(3, total)
        assert (np.sort(ids) == np.arange(total)).all()
        some = rng.permutation(3 * total)[:50]
        np.testing.assert_array_equal(made.ids(some), ids.ravel()[some])


def test_a_lane_stays_in_one_window_and_goes_on_to_the_next(rng):
    """Each lane's records of an epoch come from few blocks at a time, none of which returns."""
    for _ in range(10):
        made, counts = draw(rng, window=(window := int(rng.integers(1, 4))))
        block_of = np.repeat(np.arange(len(counts)), counts)
        for lane in range(min(made._lanes, counts.sum())):
            blocks = block_of[made.ids(np.arange(lane, counts.sum(), made._lanes))]
            last = {block: place for place, block in enumerate(blocks)}
            first = {block: place for place, block in reversed(list(enumerate(blocks)))}
            alive = [sum(first[b] <= place <= last[b] for b in first) for place in range(len(blocks))]
            assert max(alive) <= window


@pytest.mark.parametrize("num_hosts", [1, 4, 16])
def test_hosts_read_the_blocks_of_their_lanes(num_hosts, rng):
    """The bound of the docstring, counted; with 16 hosts a tenth more than once, not 16 times."""
    counts, sizes, window = rng.integers(10, 30, 1000), [64, 32], 3
    lanes = order.num_lanes(sizes)
    made, block_of = order.Order(5, "x", counts, window, lanes), np.repeat(np.arange(len(counts)), counts)
    read = 0
    steps = counts.sum() // sum(sizes)
    parts = [order.positions(step, sizes, lanes) for step in range(steps)]
    for host in range(num_hosts):
        mine = np.concatenate([np.array_split(part, num_hosts)[host] for step in parts for part in step])
        read += len(np.unique(block_of[made.ids(mine)]))
    assert lanes == 32 and len(counts) <= read <= len(counts) + lanes * window


def test_positions_are_those_of_the_step(rng):
    for _ in range(50):
        lanes = int(rng.integers(1, 65))
        sizes = (lanes * rng.integers(1, 9, int(rng.integers(1, 4)))).tolist()
        step, total = int(rng.integers(1000)), sum(sizes)
        parts = order.positions(step, sizes, lanes)
        assert [len(part) for part in parts] == sizes
        assert sorted(np.concatenate(parts)) == list(range(step * total, (step + 1) * total))
        for part in parts:
            np.testing.assert_array_equal(part % lanes, np.repeat(np.arange(lanes), len(part) // lanes))


def test_lanes_divide_the_batch():
    assert [order.num_lanes(sizes) for sizes in ([512, 512], [4, 6], [7], [96], [67, 67], [48, 32, 0])] == [
        64, 2, 7, 48, 1, 16]  # fmt: skip


def test_seeds_streams_and_epochs_differ():
    def ids(seed, name, epoch):
        return tuple(order.Order(seed, name, [30, 20], 2, 1).ids(np.arange(50) + 50 * epoch))

    assert len({ids(seed, name, epoch) for seed in range(5) for name in "abc" for epoch in range(4)}) == 60


@pytest.mark.parametrize("counts", [[12], [3, 4, 5], [1] * 12])
def test_the_order_is_well_shuffled(counts):
    """Over many epochs every id stands everywhere equally often, and neighbours are unrelated (chi square)."""
    epochs = 2400
    ids = order.Order(1, "x", counts, 12, 1).ids(np.arange(12 * epochs)).reshape(epochs, 12)
    for values in (ids[:, 0], ids[:, -1], (ids[:, 1] - ids[:, 0]) % 12):
        found = [count for _, count in sorted(collections.Counter(values.tolist()).items())]
        expected = epochs / len(found)
        assert len(found) in (12, 11)
        assert sum((count - expected) ** 2 / expected for count in found) < 40


def test_blocks_are_well_shuffled():
    """Their places over the epochs (chi square), and those of a large number of blocks."""
    epochs, made = 2400, order.Order(1, "x", [1] * 12, 1, 1)
    ids = made.ids(np.arange(12 * epochs)).reshape(epochs, 12)
    for place in range(12):
        found = np.bincount(ids[:, place], minlength=12)
        assert ((found - epochs / 12) ** 2 / (epochs / 12)).sum() < 40
    large = order._permute(np.uint64(7), np.arange(100_000), 10**12)
    assert len(set(large.tolist())) == 100_000 and abs(large.mean() / 10**12 - 0.5) < 0.01


def test_each_permutation_by_its_own_key_and_size(rng):
    sizes = rng.integers(1, 40, 200)
    keys = rng.integers(2**63, size=200).astype(np.uint64)
    for key, size in zip(keys, sizes, strict=True):
        assert sorted(order._permute(key, np.arange(size), size)) == list(range(size))
    values = rng.integers(0, sizes)
    found = order._permute(keys, values, sizes)
    alone = [order._permute(*one)[0] for one in zip(keys, values[:, None], sizes, strict=True)]
    np.testing.assert_array_equal(found, alone)


def test_a_mixture_keeps_shares_and_epochs(rng):
    for _ in range(20):
        lanes, weights = int(rng.integers(1, 20)), rng.integers(1, 6, 3).tolist()
        orders = [order.Order(3, name, rng.integers(1, 9, 10), 2, lanes) for name in "abc"]
        mixture = order.Mixture(orders, weights, lanes)
        sizes = [made.num_records for made in orders]
        positions = np.arange(20 * lanes * sum(weights))
        ids = mixture.ids(positions)
        np.testing.assert_array_equal(ids[::-7], mixture.ids(positions[::-7]))
        dataset = np.searchsorted(np.cumsum(sizes), ids, "right")
        for lane in range(lanes):
            turns = dataset[lane::lanes].reshape(-1, sum(weights))
            assert (np.stack([(turns == number).sum(1) for number in range(3)], 1) == weights).all()
        for number, start in enumerate(np.cumsum([0, *sizes[:-1]])):
            counts = np.bincount(ids[dataset == number] - start, minlength=sizes[number])
            assert counts.max() - counts.min() <= 1


def test_a_mixture_of_one_is_the_dataset_and_batches_are_mixed():
    made = order.Order(3, "x", [7, 9, 30], 2, 4)
    np.testing.assert_array_equal(order.Mixture([made], [1], 4).ids(np.arange(500)), made.ids(np.arange(500)))
    orders = [order.Order(3, name, [1000], 2, 16) for name in "ab"]
    ids = order.Mixture(orders, [3, 1], 16).ids(np.arange(320)).reshape(20, 16)
    assert ((ids >= 1000).sum(1) == 4).all()


def test_known_values_never_change():
    """A change of these would change the data of every run that resumes."""
    made = order.Order(0, "paired_data", [300, 200, 250, 250], 2, 2)
    found = [part.tolist() for part in map(made.ids, order.positions(2, [4, 2], 2))]
    assert found == [[460, 379, 540, 30], [792, 729]]


def test_coins_are_fair_and_fixed():
    tosses = order.coins(5, "x", np.arange(40_000))
    assert abs(tosses.mean() - 0.5) < 0.02 and abs((tosses[1:] == tosses[:-1]).mean() - 0.5) < 0.02
    np.testing.assert_array_equal(tosses[100:200], order.coins(5, "x", np.arange(100, 200)))
    assert (tosses != order.coins(6, "x", np.arange(40_000))).any()
