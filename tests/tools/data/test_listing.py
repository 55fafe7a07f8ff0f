"""What a source lists, in files: the items as they were, twins and samples found in pieces, bounds of shards."""

import dataclasses
import os

import numpy as np
import pytest

from tools.data import listing, preparing, splitting
from tools.data.ids import fingerprint, hash_of
from tools.data.preparing import Settings
from tools.data.sources.item import BadItem, Blob, Item, Passed, read_together


@dataclasses.dataclass(frozen=True)
class Made:
    """A source of items as they are."""

    given: dict

    def items(self, part):
        return iter(self.given[part])


def random_items(rng, count, start=0):
    kinds = [
        lambda n: Item(f"{n}", f"p:{n}", Blob("a.tar", n, 5), (f"t{n}", Blob("a.tar", n, 7, "text")), f"u{n // 3}", 2),
        lambda n: Item(f"\udcff{n}", "p", Blob("x")),
        lambda n: Item(f"é{n}", "p", texts=("",)),
        lambda n: BadItem(f"p:{n}", "it: broken"),
        lambda n: Passed("p", ".tif"),
    ]  # fmt: skip
    return [kinds[rng.integers(len(kinds))](n) for n in range(start, start + count)]


def listed(folder, given, **settings):
    """Of a source of lists of items: what each part gave."""
    source, settings = Made(dict(enumerate(given))), Settings(output="x", **settings)
    return list(listing.list_parts(source, settings, str(folder), list(enumerate(range(len(given)))), 1, None))


def test_any_range_of_items_comes_back_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "PIECE", 7)
    rng = np.random.default_rng()
    given = [random_items(rng, int(rng.integers(1, 60)), 100 * part) for part in range(3)]
    found = listed(tmp_path, given)
    for number, items in enumerate(given):
        kept = [item for item in items if not isinstance(item, Passed)]
        assert found[number]["items"] == len(kept) and found[number]["passed"].get(".tif", 0) == len(items) - len(kept)
        assert found[number]["empty"] == sum(item.num_empty for item in kept if isinstance(item, Item))
        start = int(rng.integers(0, len(kept) + 1))
        stop = int(rng.integers(start, len(kept) + 1))
        back = list(listing.items(str(tmp_path), listing.part_range(found[number], number, start, stop)))
        assert [str(item) for item in back] == [str(item) for item in kept[start:stop]]


def look(folder, found):
    ranges = list(listing.ranges(found))
    return ranges, list(listing.find_twins(str(folder), ranges, 1, None))


@pytest.mark.parametrize("per_range", [2**22, 40])
def test_twins_are_found_wherever_they_are(tmp_path, monkeypatch, per_range):
    """In one part or two, by ranges of hashes, each looked through by itself; equal hashes are no twins yet."""
    monkeypatch.setattr(listing, "RANGE", per_range)
    keys = [f"id {n}" for n in range(300)]
    parts = [[Item(key, f"{part}:{key}", Blob("x")) for key in keys[part * 100 :][:100]] for part in range(3)]
    found = listed(tmp_path, parts)
    ranges, looked = look(tmp_path, found)
    assert len(ranges) == (1 if per_range > 300 else 8) and not any(result["twins"] for result in looked)
    listing.refuse_twins(str(tmp_path), found, [[hash_of(keys[5]), [0]]])
    twin = keys[int(np.random.default_rng().integers(300))]
    for place in (0, 2):
        again = [*parts]
        again[place] = [*parts[place], Item(twin, "again", Blob("x"))]
        found = listed(tmp_path, again)
        _, looked = look(tmp_path, found)
        twins = [entry for result in looked for entry in result["twins"]]
        assert [value for value, _ in twins] == [hash_of(twin)]
        with pytest.raises(ValueError, match=f"the id '{twin}' is there twice: (.*:{twin} and again|again and .*)"):
            listing.refuse_twins(str(tmp_path), found, twins)


@pytest.mark.parametrize("asked", [{"paired_sample": 9}, {"held_out": 0.2}])
def test_the_nth_draw_is_that_of_all_draws_sorted(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(listing, "RANGE", 30)
    seed = int(np.random.default_rng().integers(10**6))
    parts = [[Item(f"{p}/{n}", "", Blob("x"), ("t",), f"unit {n % 50}") for n in range(80)] for p in range(2)]
    found = listed(tmp_path, parts, seed=seed, **asked)
    ranges, looked = look(tmp_path, found)
    draws = sorted(splitting.draw(seed, "sample", f"unit {n}") for n in range(50))
    assert len(ranges) > 4 and sum(result["draws"] for result in looked) == 50
    assert [listing.draw_of(str(tmp_path), ranges, looked, n) for n in range(1, 51)] == draws


def test_the_items_measured_are_those_of_the_least_hashes(tmp_path):
    parts = [[Item(f"{p}/{n}", "", Blob("x")) for n in range(70)] for p in range(3)]
    found = listed(tmp_path, parts)
    keys = sorted((item.key for part in parts for item in part), key=hash_of)
    assert [item.key for item in listing.sample(str(tmp_path), found)] == keys[: listing.SAMPLE]
    assert hash_of(keys[0]) == fingerprint([keys[0]]) >> 64


def test_bounds_take_each_item_once_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "PIECE", 3)
    rng = np.random.default_rng()
    parts = [[Item(f"{p}/{n}", "", Blob("x")) for n in range(rng.integers(0, 20))] for p in range(6)]
    found, keys = listed(tmp_path, parts), [item.key for part in parts for item in part]
    for most in (1, 4, 1000):
        tasks = list(preparing._tasks(found, len(keys), most))
        taken = [[item.key for part in task["ranges"] for item in listing.items(str(tmp_path), part)] for task in tasks]
        assert sum(taken, []) == keys and len(tasks) == -(-len(keys) // most)
        sizes = {len(part) for part in taken}
        assert not keys or max(sizes) <= most and max(sizes) - min(sizes) <= 1
        assert [task["number"] for task in tasks] == list(range(len(tasks)))


def test_places_that_lie_close_together_are_read_at_once(tmp_path, monkeypatch):
    data = os.urandom(500_000)
    (tmp_path / "a").write_bytes(data)
    path, reads = str(tmp_path / "a"), []
    near = [Blob(path, 100, 20), Blob(path, 10, 50), Blob(path, 40, 100), Blob(path, 300, 0)]
    far, whole, cut = Blob(path, 400_000, 9), Blob(path), Blob(path, 499_990, 50)
    absent = [Blob(str(tmp_path / "b"), 0, 5), Blob(str(tmp_path / "b"), 5, 5)]
    real = listing.storage.read_range
    monkeypatch.setattr(listing.storage, "read_range", lambda *given: (reads.append(given[1:]), real(*given))[1])
    held = read_together([*near, far, whole, cut, "a text", None, *absent, near[0]])
    assert held == {blob: data[blob.offset : blob.offset + blob.length] for blob in near}
    assert sorted(reads) == [(0, 10), (10, 290)]
    for blob in (*near, far):
        assert blob.read(999, held) == data[blob.offset : blob.offset + blob.length]
    with pytest.raises(ValueError, match="ends inside it"):
        cut.read(999, held)
    with pytest.raises(ValueError, match="no file"):
        absent[0].read(999, held)
