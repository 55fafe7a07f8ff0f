"""A source (see sources/) to shards, indexes and dataset.json. The same call goes on where an earlier one ended.

Three stages of tasks (see spread/distribution.py), each of which may be done anywhere: the parts of the source are
listed; ids that are there twice are looked for; then bounds are fixed, and each shard is written by itself. So what a
shard holds depends on the source and the settings only.

Of a folder that is not finished, `.work` tells what it was begun with, what is listed and which shards are done.
dataset.json is written last.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import sys

import PIL
import tqdm

from itit import locks, storage
from itit.config import knob
from itit.console import say
from itit.data.made_with import BEGUN, WORK
from tools.data import listing, shard_writer, splitting
from tools.data.damaged import Damage
from tools.data.ids import MODULUS
from tools.data.stored_pictures import PictureSettings
from tools.spread.distribution import Distribution, Stage, wait_for

DATASET, DAMAGED = "dataset.json", "damaged.txt"
SCHEMA = {"key": "UTF-8, unique", "image": "encoded picture", "text": "UTF-8"}


@dataclasses.dataclass(frozen=True)
class Settings(PictureSettings):
    """What any source is prepared with."""

    output: str = knob("", "Folder for the shards, local or gs://.")
    shard_bytes: int = knob(
        256 * 2**20, "Bytes of a shard, about: some of the items are measured, and so many are put into each."
    )
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


def run(name, source, settings, distribution=Distribution()):  # noqa: B008 (it is frozen)
    """Writes the dataset, or what is missing of it. Returns what dataset.json holds; None on a host that does not write
    it.

    Raises ValueError, one line, for bad settings, an id that is there twice, a folder that was begun otherwise or that
    another process is at work in, and more than max_bad_records damaged items.
    """
    settings.check()
    distribution.check()
    lock = storage.join(settings.output, locks.NAME + distribution.suffix)
    with locks.claim(lock, f"--output={settings.output}") as check:
        asked, finished = _asked(name, source, settings), storage.join(settings.output, DATASET)
        if storage.exists(finished):
            found = read_dataset(finished)
            _compare(finished, found["settings"], asked)
            print(f"{settings.output}: already finished")
            if _has_changed(source, found):
                say(f"warning: {settings.output}: the source's files have changed since; name another --output to have "
                    "them as they are now", sys.stderr)  # fmt: skip
        else:
            try:
                found = _prepare(source, settings, distribution, asked, check)
            except (OSError, ValueError):
                check()  # another process may have taken away what was being read
                raise
        if found:
            storage.remove_tree(storage.join(settings.output, WORK))
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


def _has_changed(source, found):
    """Whether a source is not the one of a finished dataset any more. One that cannot be listed may be gone."""
    try:
        return found.get("files", "") not in ("", _told(source.parts()))
    except (OSError, ValueError):
        return False


def _told(parts):
    """A text that tells the files of a source."""
    return hashlib.sha256(json.dumps(list(parts.items())).encode()).hexdigest()[:16]


def _asked(name, source, settings):
    """All that the bytes of the result depend on."""
    free = ("output", "num_workers", "max_bad_records")
    values = {key: value for key, value in dataclasses.asdict(settings).items() if key not in free}
    return {"source": name, "pillow": PIL.__version__} | dataclasses.asdict(source) | values


def _begin(output, asked, alone):
    """Writes down what a folder is begun with, or compares it. Where no shard is there yet and this is the only host
    (`alone`), what was begun otherwise begins anew. Raises ValueError where it holds other shards."""
    path, shards = storage.join(output, WORK, BEGUN), [n for n in storage.list_dir(output) if n.endswith(".tfrecord")]
    if storage.exists(path):
        found = json.loads(storage.read_bytes(path))
        if shards or not alone or found == asked:
            _compare(path, found, asked)
            for folder in (output, storage.join(output, WORK)):
                storage.remove_rests(folder)
            return
        storage.remove_tree(storage.join(output, WORK))
    if shards:
        raise ValueError(f"--output={output}: holds shards of something else; name another folder")
    storage.make_dirs(storage.join(output, WORK))
    storage.write_bytes(path, json.dumps(asked, indent=1).encode())


def _compare(path, found, asked):
    for name, value in asked.items():
        then = found.get(name, type(value)())  # a setting that was not known then was off
        if then != value:
            what = {"files": "the source's files have changed: what tells them", "pillow": "Pillow"}.get(
                name, f"--{name}"
            )
            raise ValueError(f"{path}: {what} was {then!r}, is now {value!r}; name another --output")


def _prepare(source, settings, distribution, asked, check):
    parts, work = source.parts(), storage.join(settings.output, WORK)
    files = _told(parts)
    begun = storage.join(work, BEGUN)
    if distribution.host_index:
        wait_for(lambda: storage.exists(begun), f"host 0 begins {settings.output}")
    _begin(settings.output, asked | {"files": files}, distribution.num_hosts == 1)
    stage = functools.partial(Stage, work, distribution=distribution, num_workers=settings.num_workers)
    try:
        plan = _plan(source, settings, work, list(parts), stage)
    except ValueError:
        if distribution.num_hosts == 1 and not storage.exists(storage.join(work, "shard-00000.json")):
            storage.remove_tree(work)  # nothing is written yet
        raise
    write = functools.partial(shard_writer.write_shards, settings, plan.limits, work)
    writing = stage("shard", write, plan.tasks)
    bad = Damage(settings.max_bad_records, "items", f"further ones will be in {DAMAGED}")
    with tqdm.tqdm(total=plan.num_items, desc="preparing", unit=" items") as bar:

        def seen(result):
            check()
            for cause in result["damaged"]:
                bad.add(cause)
            seen.items += result["items"]
            bar.update(seen.items - bar.n)

        seen.items = 0
        results = writing.run(seen, wait=distribution.host_index == 0, advance=bar.update)
    return _finish(settings, plan, results, asked, files) if distribution.host_index == 0 else None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known before anything is written: things listed, the `Limits` (see splitting.py), tasks of
    shard_writer.py, how much of each kind was passed over, texts that the source found to be empty."""

    num_items: int
    limits: splitting.Limits
    tasks: list
    passed: dict
    num_empty: int


def _plan(source, settings, work, parts, stage):
    """The first two stages. Raises ValueError for an id that is there twice and as `splitting.limits` does."""
    list_parts = functools.partial(listing.list_parts, source, settings, work)
    with tqdm.tqdm(desc="listing", unit=" items", leave=False, delay=1) as bar:
        listed = stage("list", list_parts, list(enumerate(parts))).run(lambda found: bar.update(found["items"]))
    ranges = list(listing.ranges(listed))
    looked = stage("twins", functools.partial(listing.find_twins, work), ranges).run()
    listing.refuse_twins(work, listed, [twin for found in looked for twin in found["twins"]])
    pairs, draw_of = sum(found["draws"] for found in looked), functools.partial(listing.draw_of, work, ranges, looked)
    limits = splitting.limits(pairs, settings.paired_sample, settings.held_out, draw_of)
    share = settings.paired_sample / max(1, pairs) if settings.paired_sample else float(not settings.unpaired_halves)
    share = min(1.0, share + settings.held_out)
    total, passed = sum(found["items"] for found in listed), collections.Counter()
    for found in listed:
        passed.update(found["passed"])
    mean = shard_writer.mean_bytes(settings, share, listing.sample(work, listed))
    tasks = list(_tasks(listed, total, max(1, int(settings.shard_bytes / max(mean, 1e-9)))))
    return Plan(total, limits, tasks, dict(sorted(passed.items())), sum(found["empty"] for found in listed))


def _tasks(listed, total, most):
    """Yields the tasks of shards that have at most so many items each, as equally as can be."""
    count, number, before = -(-total // most), 0, 0
    for shard in range(count):
        start, stop, ranges = total * shard // count, total * (shard + 1) // count, []
        while before + listed[number]["items"] <= start:
            before, number = before + listed[number]["items"], number + 1
        first, place = number, before
        while place < stop:
            end = place + listed[first]["items"]
            if end > max(place, start):
                ranges.append(listing.part_range(listed[first], first, max(start - place, 0), min(stop, end) - place))
            place, first = end, first + 1
        yield {"number": shard, "ranges": ranges}


def _finish(settings, plan, results, asked, files):
    """Writes dataset.json, and before it damaged.txt. Returns what it holds."""
    damaged = [cause for result in results for cause in result["damaged"]]
    shards = {split: [result["shards"][split] for result in results if split in result["shards"]]
              for split in splitting.SPLITS}  # fmt: skip
    used = {split: {"records": sum(shard["records"] for shard in found),
                    "bytes": sum(shard["bytes"] for shard in found),
                    "fingerprint": f"{sum(int(shard['fingerprint'], 16) for shard in found) % MODULUS:032x}",
                    "shards": found, "schema": {name: SCHEMA[name] for name in ("key", *splitting.SPLITS[split])}}
            for split, found in shards.items() if found}  # fmt: skip
    if not used:
        found = f"{len(damaged)} of {plan.num_items} are damaged" if plan.num_items else "the source holds none"
        raise ValueError(f"no usable items: {found}")
    if damaged:
        text = "".join(f"{cause}\n" for cause in damaged)
        storage.write_bytes(storage.join(settings.output, DAMAGED), text.encode("utf-8", "backslashreplace"))
    num_empty = plan.num_empty + sum(result["empty"] for result in results)
    found = {"splits": used, "damaged": len(damaged), "empty_texts": num_empty, "passed_over": plan.passed,
             "files": files, "settings": asked}  # fmt: skip
    storage.write_bytes(storage.join(settings.output, DATASET), json.dumps(found, indent=1).encode())
    return found
