"""What a source lists, in files: the items of each part in their order, and the sorted hashes of their ids.

A part is what a source names so, a file as a rule. Of all parts together nothing is held in memory but a few numbers a
part: twins are looked for in one range of hashes after the other (`find_twins`), and workers read the items of their
shard out of these files (`items`).

FOLDER/list-00000.items is pieces of items, each packed JSON, then the hashes, then the draws of the pairs, uint64.
"""

import array
import collections
import concurrent.futures
import functools
import heapq
import importlib
import itertools
import json
import zlib

import numpy as np

from itit import storage
from tools.data import splitting
from tools.data.ids import hash_of
from tools.data.sources.item import BadItem, Item, Passed

PIECE = 1000  # items
CELLS = 256  # ranges of hashes whose places are known
RANGE = 2**22  # hashes looked through at once, some 32 MB
SAMPLE = 64  # items that are measured
NAMED = 100  # twins that a range tells of
REFERENCES = {"Blob": "item", "Cell": "parquet", "Row": "hf"}  # what a picture or text may be, and its source


def list_parts(source, settings, folder, tasks, num_workers, advance):
    """Lists parts. `tasks`: of (number, part).

    Yields for each a dict: `items`, how many there are, with damaged ones; `empty`, texts that are empty; `passed`,
    kind -> how many; `pieces`, where each begins; `hashes` and `draws`, where the cells of each begin; `least`, the
    least hashes with their positions.
    """
    for number, part in tasks:
        yield _list(source, settings, _path(folder, number), part)


def _list(source, settings, path, part):
    hashes, draws, num_empty = array.array("Q"), array.array("Q"), 0
    passed, pieces, piece, count = collections.Counter(), [0], [], 0
    with storage.writer(path) as file:

        def write():
            file.write(zlib.compress(json.dumps(piece).encode(), 1))
            pieces.append(file.tell())
            piece.clear()

        def listed():
            nonlocal num_empty, count
            for item in source.items(part):
                if isinstance(item, Passed):
                    passed[item.kind] += 1
                    continue
                piece.append(_pack(item))
                if len(piece) == PIECE:
                    write()
                count += 1
                if isinstance(item, BadItem):
                    continue
                num_empty += item.num_empty
                hashes.append(hash_of(item.key))
                if (settings.paired_sample or settings.held_out) and item.image and item.texts:
                    draws.append(splitting.draw(settings.seed, "sample", item.unit or item.key))
                yield hashes[-1], count - 1

        least = heapq.nsmallest(SAMPLE, listed())
        if piece:
            write()
        cells = [_write_sorted(file, numbers) for numbers in (hashes, draws)]
    return {"items": count, "empty": num_empty, "passed": passed, "pieces": pieces, "hashes": cells[0],
            "draws": cells[1], "least": least}  # fmt: skip


def _write_sorted(file, numbers):
    """Where each cell begins in the file, and where the last one ends."""
    start, ordered = file.tell(), np.sort(np.frombuffer(numbers, np.uint64))
    edges = np.arange(1, CELLS, dtype=np.uint64) << np.uint64(64 - CELLS.bit_length() + 1)
    file.write(ordered.tobytes())
    return (start + 8 * np.concatenate([[0], np.searchsorted(ordered, edges), [len(ordered)]])).tolist()


def _path(folder, number):
    return storage.join(folder, f"list-{number:05d}.items")


def part_range(listed, number, start, stop):
    """A range of a part, JSON: what `items` needs to know. `listed`: what the part gave."""
    pieces = listed["pieces"][start // PIECE : -(-stop // PIECE) + 1]
    return {"part": number, "start": start, "stop": stop, "pieces": pieces}


def items(folder, part):
    """Yields the Items and BadItems of a range of a part."""
    path, first = _path(folder, part["part"]), part["start"] // PIECE * PIECE
    for begin, end in itertools.pairwise(part["pieces"]):
        found = json.loads(zlib.decompress(storage.read_range(path, begin, end - begin)))
        yield from map(_unpack, found[max(0, part["start"] - first) : part["stop"] - first])
        first += PIECE


def _pack(item):
    if isinstance(item, BadItem):
        return str(item)
    texts = [_reference(text) for text in item.texts]
    return [item.key, item.place, _reference(item.image), texts, item.unit, item.num_empty]


def _reference(value):
    return value if value is None or isinstance(value, str) else [type(value).__name__, *value.fields()]


def _unpack(found):
    if isinstance(found, str):
        return BadItem(*found.split(": ", 1))
    key, place, image, texts, unit, num_empty = found
    return Item(key, place, _follow(image), tuple(map(_follow, texts)), unit, num_empty)


def _follow(value):
    return value if value is None or isinstance(value, str) else _kind(value[0])(*value[1:])


@functools.cache
def _kind(name):
    return getattr(importlib.import_module(f"tools.data.sources.{REFERENCES[name]}"), name)


# ---------------------------------------------------------------------------------------------- twins


def ranges(listed):
    """Tasks of `find_twins`: ranges of cells that hold RANGE hashes, of all parts. `listed`: what they gave."""
    total = sum((found["hashes"][-1] - found["hashes"][0]) // 8 for found in listed)
    count = min(CELLS, 1 << max(0, -(-total // RANGE) - 1).bit_length())
    for low in range(0, CELLS, CELLS // count):
        high = low + CELLS // count
        yield {name: [[found[name][low], found[name][high]] for found in listed] for name in ("hashes", "draws")}


def find_twins(folder, tasks, num_workers, advance):
    """Yields for each range a dict: `twins`, [hash, numbers of the parts that have it] of hashes that are there several
    times, the first of them; `draws`, how many distinct ones there are."""
    for task in tasks:
        parts = _read(folder, task["hashes"])
        ordered = np.sort(np.concatenate(parts))
        twins = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])[:NAMED]
        yield {"twins": [[twin, [number for number, part in enumerate(parts) if twin in part]]
                         for twin in twins.tolist()],
               "draws": len(np.unique(np.concatenate(_read(folder, task["draws"]))))}  # fmt: skip


def _read(folder, spans):
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        data = pool.map(lambda number, span: storage.read_range(_path(folder, number), span[0], span[1] - span[0])
                        if span[1] > span[0] else b"", range(len(spans)), spans)  # fmt: skip
        return [np.frombuffer(part, np.uint64) for part in data]


def refuse_twins(folder, listed, twins):
    """Raises ValueError where two items have one id: hashes found the candidates, the ids themselves decide.

    `twins`: of `find_twins`.
    """
    wanted, seen = {twin for twin, _ in twins}, {}
    for number in sorted({number for _, numbers in twins for number in numbers}):
        for item in items(folder, part_range(listed[number], number, 0, listed[number]["items"])):
            if not isinstance(item, BadItem) and hash_of(item.key) in wanted:
                if item.key in seen:
                    raise ValueError(f"the id {item.key!r} is there twice: {seen[item.key]} and {item.place}")
                seen[item.key] = item.place


def draw_of(folder, tasks, found, number):
    """The `number`-th of the distinct draws, from 1, least first. `tasks`, `found`: of `find_twins`, of all ranges."""
    ends = itertools.accumulate(result["draws"] for result in found)
    task, end = next((task, end) for task, end in zip(tasks, ends, strict=True) if end >= number)
    here = np.unique(np.concatenate(_read(folder, task["draws"])))
    return int(here[number - 1 - (end - len(here))])


# ---------------------------------------------------------------------------------------------- sample


def sample(folder, listed):
    """The items of the least hashes of all: as good as drawn at random, and the same in whatever order they lie."""
    places = ((value, number, position) for number, found in enumerate(listed) for value, position in found["least"])
    for _, number, position in heapq.nsmallest(SAMPLE, places):
        yield next(items(folder, part_range(listed[number], number, position, position + 1)))
