"""Samples and halves: exact counts, no unit on both sides, the same whatever else is there."""

import numpy as np

from tools.data import splitting
from tools.data.sources.item import Blob, Item


def pairs(count):
    return [Item(f"item {number}", "", Blob("x"), ("text",)) for number in range(count)]


def draws(items, seed):
    return [splitting.draw(seed, "sample", item.key) for item in items]


def test_halves_are_even_and_a_function_of_each_id_alone():
    seed = int(np.random.default_rng().integers(10**6))
    items = pairs(4000)
    found = {item.key: splitting.split_of(item, seed, None, True) for item in items}
    counts = [list(found.values()).count(split) for split in ("images", "texts")]
    assert sum(counts) == 4000 and abs(counts[0] - 2000) < 6 * 32, "six standard deviations"
    for item in pairs(100):
        other = Item(item.key, "elsewhere", Blob("y"), ("another", "text"))
        assert splitting.split_of(other, seed, None, True) == found[item.key]
    other = [splitting.split_of(item, seed + 1, None, True) for item in items]
    assert 0.4 < np.mean([a == b for a, b in zip(found.values(), other, strict=True)]) < 0.6


def test_rows_of_one_picture_are_on_one_side():
    for unit in range(50):
        rows = [Item(f"{unit}/{row}", "", Blob("x"), ("t",), unit=f"picture {unit}") for row in range(5)]
        assert len({splitting.split_of(row, 3, None, True) for row in rows}) == 1


def test_the_sample_has_exactly_n_and_grows_without_changing():
    items, seed = pairs(300), int(np.random.default_rng().integers(10**6))
    taken = []
    for count in (1, 40, 41, 300):
        limit = sorted(draws(items, seed))[count - 1]
        taken.append({item.key for item in items if splitting.split_of(item, seed, limit, False) == "paired"})
        assert len(taken[-1]) == count
        dealt = [splitting.split_of(item, seed, limit, True) for item in items]
        assert dealt.count("paired") == count and dealt.count(None) == 0
    assert taken[0] < taken[1] < taken[2] < taken[3]
    limit = sorted(draws(items, seed))[9]
    assert {splitting.split_of(item, seed, limit, False) for item in items} == {"paired", None}


def test_sample_and_halves_do_not_depend_on_each_other():
    seed = int(np.random.default_rng().integers(10**6))
    both = [
        (splitting.draw(seed, "sample", str(n)) & 1, splitting.draw(seed, "halves", str(n)) & 1) for n in range(4000)
    ]
    counts = [both.count((a, b)) for a in (0, 1) for b in (0, 1)]
    assert max(abs(count - 1000) for count in counts) < 6 * 28


def test_what_is_no_pair_goes_where_it_belongs():
    assert splitting.split_of(Item("a", "", Blob("x")), 0, 5, False) == "images"
    assert splitting.split_of(Item("a", "", None, ("t",)), 0, 5, True) == "texts"
    assert splitting.split_of(pairs(1)[0], 0, None, False) == "paired"
