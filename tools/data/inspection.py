"""One shard looked through, record by record: what it holds, and all that is wrong with it. Without printing."""

import collections
import dataclasses
import functools
import io

import numpy as np

from itit import sheets, storage
from itit.data import images, records, shard_index
from itit.data.text import EOS, Tokenizer
from tools.data.ids import MODULUS, fingerprint, hash_of

STRINGS = ("key", "image", "text")


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to look through.

    Args:
      expected: what dataset.json says of it: `records`, `bytes`, `fingerprint`, `features`; None: nothing is said.
      vocabulary: SentencePiece model that texts are measured with, in pieces; empty: in characters.
      num_tiles: pictures for the grid.
    """

    path: str
    expected: dict | None
    vocabulary: str
    max_image_pixels: int
    num_tiles: int


@dataclasses.dataclass
class Report:
    """What a shard holds.

    Attributes: `offsets` and `hashes` (64 bits of each id) of the sound records; `lengths` of texts and `sizes`
    (width, height) of pictures -> how many; `extremes`: what -> (how much, where), the worst of a kind; `damaged`:
    `path@offset: cause`; `tiles`: [(JPEG of a square, caption)].
    """

    path: str
    num_bytes: int = 0
    features: tuple = ()
    offsets: list = dataclasses.field(default_factory=list)
    hashes: list = dataclasses.field(default_factory=list)
    fingerprint: int = 0
    lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    extremes: dict = dataclasses.field(default_factory=dict)
    damaged: list = dataclasses.field(default_factory=list)
    tiles: list = dataclasses.field(default_factory=list)

    def extreme(self, what, value, place):
        if value > self.extremes.get(what, (0, ""))[0]:
            self.extremes[what] = (value, place)


def examine(job):
    """The Report of a shard. Raises OSError where it is not there."""
    report = Report(job.path, storage.size(job.path))
    spans, broken = records.scan(job.path)
    if broken:
        report.damaged.append(str(broken))
    _check_index(report, spans)
    shown = {i * len(spans) // job.num_tiles for i in range(job.num_tiles)} if job.num_tiles else set()
    counts = {}
    for number, (offset, length) in enumerate(spans.tolist()):
        try:
            _record(report, job, counts, offset, length, number in shown)
        except records.BadRecord as error:
            report.damaged.append(str(error))
        except ValueError as error:
            report.damaged.append(str(records.BadRecord(job.path, offset, error)))
    _check_expected(report, job)
    return report


def _check_index(report, spans):
    try:
        found = shard_index.read(report.path)
        if found is not None and not np.array_equal(found, spans):
            raise records.BadRecord(shard_index.path_of(report.path), 0, "its offsets are not those of the records")
    except records.BadRecord as error:
        report.damaged.append(str(error))


def _check_expected(report, job):
    if job.expected is None:
        return
    found = {"records": len(report.offsets), "bytes": report.num_bytes, "fingerprint": f"{report.fingerprint:032x}"}
    for name, value in found.items():
        if job.expected[name] != value:
            cause = f"{name} {value}, must be {job.expected[name]} by dataset.json"
            report.damaged.append(str(records.BadRecord(job.path, 0, cause)))


def _record(report, job, counts, offset, length, shown):
    """Adds one record to the report. Raises ValueError with what is wrong with it."""
    features = records.decode_example(records.read(job.path, offset, length))
    names = tuple(sorted(features))
    must = tuple(job.expected["features"]) if job.expected else report.features or names
    if names != tuple(sorted(must)):
        raise ValueError(f"holds {', '.join(names)}, must hold {', '.join(sorted(must))}")
    strings = {name: _string(name, features[name]) for name in STRINGS if name in features}
    key, text = (strings[name].decode() if name in strings else None for name in ("key", "text"))
    picture = images.to_rgb(images.open_picture(strings["image"], job.max_image_pixels)) if "image" in strings else None
    if text is not None and not text.strip():
        raise ValueError("empty text")
    for name in ("image_ids", "text_ids"):
        if name in features:
            _check_ids(name, features[name], counts)
    report.features = names
    report.offsets.append(offset)
    if key is not None:
        report.fingerprint = (report.fingerprint + fingerprint([key])) % MODULUS
        report.hashes.append(hash_of(key))
    place = f"{job.path}@{offset}"
    if text is not None:
        size = len(text) if not job.vocabulary else _num_pieces(job.vocabulary, text)
        report.lengths[size] += 1
        report.extreme("longest text", size, place)
    if picture:
        _measure(report, picture, place)
        if shown:
            report.tiles.append((_tile(picture), text or ""))


def _string(name, value):
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError(f"{name!r} must be one string of bytes")
    return value[0]


def _check_ids(name, ids, counts):
    if isinstance(ids, list) or ids.dtype != np.int64 or not len(ids) or ids.min() < 0:
        raise ValueError(f"{name!r} must be integers that are not negative")
    if len(ids) != counts.setdefault(name, len(ids)):
        raise ValueError(f"{name!r} has {len(ids)} ids, the records before it {counts[name]}")
    if name == "text_ids" and (ids == EOS).sum() != 1:
        raise ValueError(f"'text_ids' must hold EOS ({EOS}) once")


def _measure(report, picture, place):
    width, height = picture.size
    report.sizes[width, height] += 1
    report.extreme("most pixels", width * height, place)
    report.extreme("longest side over the other", round(max(picture.size) / min(picture.size), 2), place)


def _tile(picture):
    data = io.BytesIO()
    sheets.fitted(picture, sheets.SIDE).save(data, "JPEG", quality=90)
    return data.getvalue()


@functools.lru_cache(1)
def _vocabulary(path):
    return Tokenizer(path)


def _num_pieces(path, text):
    """Pieces of a text with EOS."""
    return _vocabulary(path).count(text)
