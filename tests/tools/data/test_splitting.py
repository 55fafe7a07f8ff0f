"""Samples and halves: exact counts, no unit on both sides, the same whatever else is there."""

import numpy as np
import pytest

from tools.data import splitting
from tools.data.sources.item import Blob, Item


def pairs(count):
    return [Item(f"item {number}", "", Blob("x"), ("text",)) for number in range(count)]


ALL = splitting.Limits()


def limits(items, seed, share=0.0, count=0):
    draws = sorted({splitting.draw(seed, "sample", item.unit or item.key) for item in items})
    return splitting.limits(len(draws), count, share, lambda n: draws[n - 1])


def test_halves_are_even_and_a_function_of_each_id_alone():
    seed = int(np.random.default_rng().integers(10**6))
    items = pairs(4000)
    found = {item.key: splitting.split_of(item, seed, ALL, True) for item in items}
    counts = [list(found.values()).count(split) for split in ("images", "texts")]
    assert sum(counts) == 4000 and abs(counts[0] - 2000) < 6 * 32, "six standard deviations"
    for item in pairs(100):
        other = Item(item.key, "elsewhere", Blob("y"), ("another", "text"))
        assert splitting.split_of(other, seed, ALL, True) == found[item.key]
    other = [splitting.split_of(item, seed + 1, ALL, True) for item in items]
    assert 0.4 < np.mean([a == b for a, b in zip(found.values(), other, strict=True)]) < 0.6


def test_rows_of_one_picture_are_on_one_side():
    for unit in range(50):
        rows = [Item(f"{unit}/{row}", "", Blob("x"), ("t",), unit=f"picture {unit}") for row in range(5)]
        assert len({splitting.split_of(row, 3, ALL, True) for row in rows}) == 1


def test_the_sample_has_exactly_n_and_grows_without_changing():
    items, seed = pairs(300), int(np.random.default_rng().integers(10**6))
    taken = []
    for count in (1, 40, 41, 300):
        found = limits(items, seed, count=count)
        taken.append({item.key for item in items if splitting.split_of(item, seed, found, False) == "paired"})
        assert len(taken[-1]) == count
        dealt = [splitting.split_of(item, seed, found, True) for item in items]
        assert dealt.count("paired") == count and dealt.count(None) == 0
    assert taken[0] < taken[1] < taken[2] < taken[3]
    found = limits(items, seed, count=10)
    assert {splitting.split_of(item, seed, found, False) for item in items} == {"paired", None}
    with pytest.raises(ValueError, match="--paired_sample=301: must be at most 300"):
        limits(items, seed, count=301)


def test_what_is_held_out_is_in_no_other_split_and_stays_so():
    """Whatever the sample and the halves are; of a picture in several rows all rows are, or none."""
    seed = int(np.random.default_rng().integers(10**6))
    names = [(number, row) for number in range(105) for row in (0, 1)]
    items = [Item(f"{number}/{row}", "", Blob("x"), ("text",), unit=f"{number}") for number, row in names]
    kept = set()
    for count, halves in ((0, False), (0, True), (94, False), (60, False), (60, True)):
        found = limits(items, seed, 0.1, count)
        dealt = {item.key: splitting.split_of(item, seed, found, halves) for item in items}
        held_out = {key for key, split in dealt.items() if split == "held_out"}
        assert len(held_out) == 22 and len({key.partition("/")[0] for key in held_out}) == 11, "a tenth, rounded up"
        kept.add(frozenset(held_out))
        assert list(dealt.values()).count("paired") == (0 if halves and not count else 2 * (count or 94))
    assert len(kept) == 1
    with pytest.raises(ValueError, match="--held_out=0.1: leaves 94 of 105 pairs, must leave at least 95"):
        limits(items, seed, 0.1, 95)
    assert [splitting.split_of(item, seed, limits(items, seed, 1e-9), False) for item in items].count("held_out") == 2
    for few in ([], items[:2]):
        with pytest.raises(ValueError, match=f"leaves 0 of {len(few) // 2} pairs, must leave at least 1"):
            limits(few, seed, 0.1)


def test_sample_and_halves_do_not_depend_on_each_other():
    seed = int(np.random.default_rng().integers(10**6))
    both = [
        (splitting.draw(seed, "sample", str(n)) & 1, splitting.draw(seed, "halves", str(n)) & 1) for n in range(4000)
    ]
    counts = [both.count((a, b)) for a in (0, 1) for b in (0, 1)]
    assert max(abs(count - 1000) for count in counts) < 6 * 28


def test_what_is_no_pair_goes_where_it_belongs():
    assert splitting.split_of(Item("a", "", Blob("x")), 0, splitting.Limits(5, 5), False) == "images"
    assert splitting.split_of(Item("a", "", None, ("t",)), 0, splitting.Limits(5, 5), True) == "texts"
    assert splitting.split_of(pairs(1)[0], 0, ALL, False) == "paired"
