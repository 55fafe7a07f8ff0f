"""A source (see sources/) to shards, indexes and dataset.json. The same call goes on where an earlier one ended.

A first pass over the source looks at ids alone: none twice, how many, which are the sample. A second one reads, in
several processes, and writes in the order of the source. What a shard holds depends on the source and the settings
only, so that a run that was killed and called again ends with the same bytes.

Of a folder that is not finished, `.begun.json` tells what it was begun with. dataset.json is written last.
"""

import array
import collections
import contextlib
import dataclasses
import functools
import json
from typing import NamedTuple

import numpy as np
import PIL
import tqdm

from itit import locks, storage
from itit.config import knob
from itit.data import records
from tools.data import splitting, workers
from tools.data.damaged import Damage
from tools.data.shard_writer import MODULUS, ShardWriter, fingerprint
from tools.data.sources.item import MAX_PICTURE, BadItem, Passed
from tools.data.stored_pictures import PictureSettings, store

DATASET, BEGUN, DAMAGED = "dataset.json", ".begun.json", "damaged.txt"
SCHEMA = {"key": "UTF-8, unique", "image": "encoded picture", "text": "UTF-8"}
PICTURES_A_TASK, TEXTS_A_TASK = 4, 256


@dataclasses.dataclass(frozen=True)
class Settings(PictureSettings):
    """What any source is prepared with."""

    output: str = knob("", "Folder for the shards, local or gs://.")
    shard_bytes: int = knob(256 * 2**20, "Bytes that a shard has at most.")
    unpaired_halves: bool = knob(
        False, "Take pairs apart: one half gives its pictures, the other its texts (P sec. 4.1)."
    )
    paired_sample: int = knob(0, "Pictures with their texts that stay pairs; 0: all, or none with --unpaired_halves.")
    held_out: float = knob(0.0, "Share of the pictures with texts, rounded up, that go to `held_out` and nowhere else.")
    seed: int = knob(0, "Seed of the sample, of what is held out and of the halves.")
    max_bad_records: int = knob(0, "Damaged items to leave out, each counted and named, before it stops.")
    num_workers: int = knob(0, "Processes that read and encode; 1: the one that writes does it; 0: one a processor.")

    def check(self):
        """Raises ValueError naming the flag."""
        super().check()
        if not self.output:
            raise ValueError("--output is empty: name a folder for the shards")
        least = {"shard_bytes": 1, "paired_sample": 0, "max_bad_records": 0, "num_workers": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"--{name}={getattr(self, name)}: must be at least {value}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held_out={self.held_out}: must be in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the first pass found: things listed, fingerprint of their ids, the `Limits` (see splitting.py), how much of
    each kind was passed over, texts that the source found to be empty."""

    num_items: int
    fingerprint: str
    limits: splitting.Limits
    passed: dict
    num_empty: int


def run(name, source, settings):
    """Writes the dataset, or what is missing of it. Returns what dataset.json holds.

    Raises ValueError, one line, for bad settings, an id that is there twice, a folder that was begun otherwise or that
    another process is at work in, and more than max_bad_records damaged items.
    """
    settings.check()
    storage.is_remote(settings.output)
    with locks.hold(storage.join(settings.output, locks.NAME), f"--output={settings.output}"):
        return _run(name, source, settings)


def _run(name, source, settings):
    asked, finished = _asked(name, source, settings), storage.join(settings.output, DATASET)
    if storage.exists(finished):
        found = read_dataset(finished)
        _compare(finished, found["settings"], asked)
        print(f"{settings.output}: already finished")
    else:
        plan = make_plan(source, settings)
        _begin(settings.output, asked | {"items": plan.num_items, "ids": plan.fingerprint})
        found = _write(source, settings, plan, asked)
    _clean(settings.output, lambda name: name == BEGUN or name.endswith(".done"))
    return found


def read_dataset(path):
    """dataset.json as a dict. Raises ValueError where it is none."""
    data = storage.read_bytes(path)
    try:
        found = json.loads(data)
        if not all(split in splitting.SPLITS for split in found["splits"]) or not isinstance(found["settings"], dict):
            raise ValueError("its splits or settings are missing")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what tools.prepare writes: {error!r}") from None
    return found


def make_plan(source, settings):
    """The first pass. Raises ValueError for an id that is there twice and as `splitting.limits` does."""
    hashes, draws, total, count = array.array("Q"), array.array("Q"), 0, 0
    passed, num_empty = collections.Counter(), 0
    for item in tqdm.tqdm(_items(source, passed), "listing", unit=" items", leave=False, delay=1):
        count += 1
        if isinstance(item, BadItem):
            continue
        num_empty += item.num_empty
        number = fingerprint([item.key])
        total = (total + number) % MODULUS
        hashes.append(number >> 64)
        if (settings.paired_sample or settings.held_out) and item.image and item.texts:
            draws.append(splitting.draw(settings.seed, "sample", item.unit or item.key))
    _refuse_twins(source, np.frombuffer(hashes, np.uint64))
    ordered = np.unique(np.frombuffer(draws, np.uint64))
    limits = splitting.limits(len(ordered), settings.paired_sample, settings.held_out, lambda n: int(ordered[n - 1]))
    return Plan(count, f"{total:032x}", limits, dict(sorted(passed.items())), num_empty)


def _items(source, passed=None):
    """Items and BadItems alone; their places among these are their positions. `passed`: a Counter of the others."""
    for item in source.items():
        if not isinstance(item, Passed):
            yield item
        elif passed is not None:
            passed[item.kind] += 1


def _refuse_twins(source, hashes):
    """Hashes find the candidates without holding all ids; the ids themselves decide."""
    ordered = np.sort(hashes)
    twins, seen = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()), {}
    if not twins:
        return
    for item in _items(source):
        if not isinstance(item, BadItem) and fingerprint([item.key]) >> 64 in twins:
            if item.key in seen:
                raise ValueError(f"the id {item.key!r} is there twice: {seen[item.key]} and {item.place}")
            seen[item.key] = item.place


def _asked(name, source, settings):
    """All that the bytes of the result depend on."""
    free = ("output", "num_workers", "max_bad_records")
    values = {key: value for key, value in dataclasses.asdict(settings).items() if key not in free}
    return {"source": name, "pillow": PIL.__version__} | dataclasses.asdict(source) | values


def _begin(output, asked):
    """Writes down what a folder is begun with, or compares it. Raises ValueError where it holds other shards."""
    path = storage.join(output, BEGUN)
    if storage.exists(path):
        _compare(path, json.loads(storage.read_bytes(path)), asked)
        _clean(output, lambda name: ".tmp-" in name)
        return
    if any(name.endswith(".tfrecord") for name in storage.list_dir(output)):
        raise ValueError(f"--output={output}: holds shards of something else; name another folder")
    storage.make_dirs(output)
    storage.write_bytes(path, json.dumps(asked, indent=1).encode())


def _compare(path, found, asked):
    for name, value in asked.items():
        then = found.get(name, type(value)())  # a setting that was not known then was off
        if then != value:
            what = {"items": "the items listed", "ids": "the ids listed", "pillow": "Pillow"}.get(name, f"--{name}")
            raise ValueError(f"{path}: {what} was {then!r}, is now {value!r}; name another --output")


def _clean(output, is_rest):
    for name in storage.list_dir(output):
        if name.startswith(".") and is_rest(name):
            storage.remove_tree(storage.join(output, name))


def _write(source, settings, plan, asked):
    """The second pass."""
    with contextlib.ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(settings.output, split, settings.shard_bytes))
                   for split in splitting.SPLITS}  # fmt: skip
        bad = Damage(settings.max_bad_records, "items", f"further ones will be in {DAMAGED}",
                     sum(len(writer.damaged) for writer in writers.values()))  # fmt: skip
        bar = stack.enter_context(tqdm.tqdm(total=plan.num_items, desc="preparing", unit=" items"))
        tasks = _tasks(source, settings, plan, writers)
        results = workers.ordered(functools.partial(encode, settings), tasks, settings.num_workers)
        for position, done in stack.enter_context(contextlib.closing(results)):
            for place, split, result in done:
                if isinstance(result, str):
                    bad.add(result)
                    writers[split].add_damaged(place, result)
                else:
                    _add(writers, place, split, result)
            bar.update(position - bar.n)
    damaged = sorted(entry for writer in writers.values() for entry in writer.damaged)
    used = {split: writer.summary() for split, writer in writers.items() if writer.shards}
    if not used:
        raise ValueError(f"no usable items: {len(damaged)} of {plan.num_items} are damaged")
    for split in used:
        used[split]["schema"] = {name: SCHEMA[name] for name in ("key", *splitting.SPLITS[split])}
    if damaged:
        text = "".join(f"{cause}\n" for _, cause in damaged)
        storage.write_bytes(storage.join(settings.output, DAMAGED), text.encode("utf-8", "backslashreplace"))
    num_empty = plan.num_empty + sum(count for writer in writers.values() for _, count in writer.empty)
    found = {"splits": used, "damaged": len(damaged), "empty_texts": num_empty, "passed_over": plan.passed,
             "settings": asked}  # fmt: skip
    storage.write_bytes(storage.join(settings.output, DATASET), json.dumps(found, indent=1).encode())
    return found


def _add(writers, place, split, result):
    """Writes what became of one item, but for what is in a finished shard: one that was to be in `split` and has no
    text is in that of the pictures, which may be further."""
    if result.num_empty:
        writers[split].add_empty(place, result.num_empty)
    if result.split != split:
        writers[split].add_moved(place)
    if place >= writers[result.split].position:
        writers[result.split].add(place, result.keys, result.examples)


def _tasks(source, settings, plan, writers):
    """Yields (position after it, list of (position, split, Item or BadItem)): what is not yet in finished shards."""
    task, weight = [], 0
    moved = {position for writer in writers.values() for (position,) in writer.moved}
    for position, item in enumerate(_items(source)):
        bad = isinstance(item, BadItem)
        split = "paired" if bad else splitting.split_of(item, settings.seed, plan.limits, settings.unpaired_halves)
        if position in moved and position < writers[split].position:
            split = "images"
        if split and position >= writers[split].position:
            task.append((position, split, item))
            weight += 1 / TEXTS_A_TASK if bad or not item.image else 1 / PICTURES_A_TASK
        if weight >= 1:
            yield position + 1, task
            task, weight = [], 0
    yield plan.num_items, task


class Encoded(NamedTuple):
    """An item as records: the split that it goes to, their ids, their bytes, and how many of its texts are empty."""

    split: str
    keys: list
    examples: list
    num_empty: int


def encode(settings, task):
    """In a worker: (position after it, list of (position, split, Encoded)); of what is damaged, in its place, the
    message."""
    position, entries = task
    return position, [(place, split, _encode(settings, split, item)) for place, split, item in entries]


def _encode(settings, split, item):
    if isinstance(item, BadItem):
        return str(item)
    try:
        shared, texts, num_empty = {}, [None], 0
        if "text" in splitting.SPLITS[split]:
            texts, num_empty = item.load_texts()
            if not texts and not item.image:
                raise ValueError("empty text")
            if not texts:
                split, texts = "images", [None]
        if "image" in splitting.SPLITS[split]:
            shared["image"] = store(item.image.read(MAX_PICTURE), settings)
        keys = [item.key] if len(texts) == 1 else [f"{item.key}/{number}" for number in range(len(texts))]
        features = (shared | {"key": key} | ({} if text is None else {"text": text})
                    for key, text in zip(keys, texts, strict=True))  # fmt: skip
        return Encoded(split, keys, [records.encode_example(values) for values in features], num_empty)
    except ValueError as error:
        return str(BadItem(item.place, error))
