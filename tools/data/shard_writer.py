"""Items of a source to shards: read ahead on threads, encoded in this process or in several, written in order.

A task is a range of what is listed (see listing.py), and gives up to one shard a split: FOLDER/SPLIT-0000i.tfrecord, of
task i, with its index. What a shard holds depends on the source and the settings only.
"""

import concurrent.futures
import contextlib
import functools
import itertools
from typing import NamedTuple

from itit import storage
from itit.data import records, shard_index
from tools.data import listing, splitting
from tools.data.damaged import Damage
from tools.data.ids import MODULUS, fingerprint
from tools.data.sources.item import MAX_PICTURE, BadItem, read_together
from tools.data.stored_pictures import store
from tools.spread import workers

PICTURES_AT_ONCE, TEXTS_AT_ONCE = 4, 256  # that a process encodes
READS, READ_AHEAD = 16, 24


class Loaded(NamedTuple):
    """An item that is read: its id and place; the split that it goes to, or None; bytes of its picture or None, list of
    its texts, how many others are empty; or what is wrong with it."""

    key: str = ""
    place: str = ""
    split: str | None = None
    picture: bytes | None = None
    texts: tuple = (None,)
    num_empty: int = 0
    cause: str = ""


class Encoded(NamedTuple):
    """An item as records: the split that it goes to, their ids, their bytes, and how many of its texts are empty; or
    what is wrong with it."""

    split: str | None = None
    keys: tuple = ()
    examples: tuple = ()
    num_empty: int = 0
    cause: str = ""


def write_shards(settings, limits, folder, tasks, num_workers, advance):
    """Writes the shards of each task and yields what became of it.

    Args:
      settings: of preparing.py.
      limits: see splitting.py.
      folder: of what is listed.
      tasks: list of dicts, `number` and `ranges` (see listing.py).
      num_workers: processes that encode; 1: this one.
      advance: called with a number of items, now and then; or None.

    Yields:
      dict: `items`; `shards`, split -> `name`, `records`, `bytes`, `fingerprint` of its ids; `damaged`, causes;
      `empty`, texts that are.
    """
    with contextlib.ExitStack() as stack:
        reads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(READS))
        load_chunk = functools.partial(_load, settings, limits)
        loaded = workers.ahead(reads, load_chunk, _chunks(folder, tasks), READ_AHEAD)
        stack.enter_context(contextlib.closing(loaded))
        encode_chunk = functools.partial(encode, settings)
        encoded = stack.enter_context(contextlib.closing(workers.ordered(encode_chunk, loaded, num_workers)))
        for number, chunks in itertools.groupby(encoded, key=lambda chunk: chunk[0]):
            found = _write(settings, tasks[number], (items for _, items in chunks), advance or (lambda count: None))
            yield found


def _chunks(folder, tasks):
    """Yields (number of a task in the list, list of Items and BadItems), never of two tasks."""
    for place, task in enumerate(tasks):
        chunk, weight = [], 0
        for item in (item for part in task["ranges"] for item in listing.items(folder, part)):
            chunk.append(item)
            weight += 1 / (PICTURES_AT_ONCE if not isinstance(item, BadItem) and item.image else TEXTS_AT_ONCE)
            if weight >= 1:
                yield place, chunk
                chunk, weight = [], 0
        yield place, chunk


def _load(settings, limits, chunk):
    """On a thread: (number of the task, list of Loaded)."""
    place, items = chunk
    split_of = functools.partial(splitting.split_of, seed=settings.seed, limits=limits, halves=settings.unpaired_halves)
    splits = [None if isinstance(item, BadItem) else split_of(item) for item in items]
    wanted = {name: [item for item, split in zip(items, splits, strict=True) if name in splitting.HOLDS[split]]
              for name in ("image", "text")}  # fmt: skip
    held = read_together([item.image for item in wanted["image"]] + [text for i in wanted["text"] for text in i.texts])
    return place, [load(split, item, held) for item, split in zip(items, splits, strict=True)]


def load(split, item, held=()):
    """`Loaded` of an item that is to go to `split`; None: nowhere."""
    if isinstance(item, BadItem):
        return Loaded(cause=str(item))
    texts, num_empty, picture = (None,), 0, None
    try:
        if "text" in splitting.HOLDS[split]:
            texts, num_empty = item.load_texts(held)
            if not texts and not item.image:
                raise ValueError("empty text")
            if not texts:
                split, texts = "images", (None,)
        if "image" in splitting.HOLDS[split]:
            picture = item.image.read(MAX_PICTURE, held)
    except ValueError as error:
        return Loaded(cause=str(BadItem(item.place, error)))
    return Loaded(item.key, item.place, split, picture, tuple(texts), num_empty)


def encode(settings, chunk):
    """In a process: (number of the task, list of Encoded)."""
    place, items = chunk
    return place, [encode_one(settings, loaded) for loaded in items]


def encode_one(settings, loaded):
    """`Loaded` -> `Encoded`."""
    if loaded.cause or not loaded.split:
        return Encoded(cause=loaded.cause)
    try:
        shared = {} if loaded.picture is None else {"image": store(loaded.picture, settings)}
        keys = [loaded.key] if len(loaded.texts) == 1 else [f"{loaded.key}/{n}" for n in range(len(loaded.texts))]
        features = (shared | {"key": key} | ({} if text is None else {"text": text})
                    for key, text in zip(keys, loaded.texts, strict=True))  # fmt: skip
        examples = tuple(records.encode_example(values) for values in features)
        return Encoded(loaded.split, tuple(keys), examples, loaded.num_empty)
    except ValueError as error:
        return Encoded(cause=str(BadItem(loaded.place, error)))


def _write(settings, task, chunks, advance):
    found = {"items": 0, "shards": {}, "damaged": [], "empty": 0}
    damage, writers = Damage(settings.max_bad_records, "items", shown=False), {}
    with contextlib.ExitStack() as stack:
        for chunk in chunks:
            for encoded in chunk:
                found["empty"] += encoded.num_empty
                if encoded.cause:
                    found["damaged"].append(encoded.cause)
                    damage.add(encoded.cause)
                elif encoded.split:
                    if encoded.split not in writers:
                        name = f"{encoded.split}-{task['number']:05d}.tfrecord"
                        writer = stack.enter_context(records.RecordWriter(storage.join(settings.output, name)))
                        writers[encoded.split], found["shards"][encoded.split] = (
                            writer,
                            {"name": name, "fingerprint": 0},
                        )
                    for example in encoded.examples:
                        writers[encoded.split].write(example)
                    found["shards"][encoded.split]["fingerprint"] += fingerprint(encoded.keys)
            found["items"] += len(chunk)
            advance(len(chunk))
        for split, writer in writers.items():
            shard = found["shards"][split]
            shard |= {"records": len(writer.spans), "bytes": writer.size,
                      "fingerprint": f"{shard['fingerprint'] % MODULUS:032x}"}  # fmt: skip
            shard_index.write(storage.join(settings.output, shard["name"]), writer.spans)
    return found


def mean_bytes(settings, share, items):
    """Of an item of the source in all shards together.

    Args:
      share: of the pairs, that stay pairs or are held out.
      items: some of the source.
    """
    rest = (1 - share) / 2 if settings.unpaired_halves else 0
    weights, sizes = {"paired": share, "images": rest, "texts": rest}, []
    for item in items:
        alone = "images" if item.image else "texts"
        parts = weights if item.image and item.texts else {alone: 1}
        made = [(weight, encode_one(settings, load(split, item))) for split, weight in parts.items() if weight]
        if not any(encoded.cause for _, encoded in made):
            sizes.append(sum(weight * (len(example) + records.HEADER + records.FOOTER)
                             for weight, encoded in made for example in encoded.examples))  # fmt: skip
    return sum(sizes) / len(sizes) if sizes else 1.0
