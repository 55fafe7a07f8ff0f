"""One stream's records: where they lie, what they hold, and the checks that each passes before it is trained on.

Shapes: N image tokens, L text tokens, R records.
"""

import re
import statistics

import google_crc32c
import numpy as np

from itit import storage
from itit.console import counted
from itit.data import blocks, images, order, records
from itit.data.text import EOS, PAD

# What a stream may be asked for, and its two forms in a record: ready ids come first.
FORMS = {"picture": ("image_ids", "image"), "text": ("text_ids", "text")}
# Ready ids -> the setting that says how many a record has.
LENGTHS = {"image_ids": "num_image_tokens", "text_ids": "num_text_tokens"}
MAX_WEIGHT = 1000


def datasets(pattern):
    """Patterns of shards and their weights: "a-*, b-*" is one dataset, "a-*@3, b-*@1" two of which the first gives
    three of four records. Raises ValueError for a weight that is none, and where only some have one."""
    parts = [part.strip() for part in pattern.split(",")]
    if not any("@" in part for part in parts):
        return [(pattern, 1)]
    found = []
    for part in parts:
        name, _, weight = part.rpartition("@")
        if not name or not re.fullmatch("[1-9][0-9]*", weight) or int(weight) > MAX_WEIGHT:
            raise ValueError(f"{part!r}: must end in @ and a whole number from 1 to {MAX_WEIGHT}, its weight, as the "
                             "others of the stream do")  # fmt: skip
        found.append((name, int(weight)))
    return found


def length_of(form, pattern):
    """(How many ids of a form of LENGTHS most of a shard's first records have, the shard), or None where none are
    ready. Raises ValueError where the pattern names no shards."""
    path = storage.glob(datasets(pattern)[0][0])[0]
    found = _lengths(form, path, blocks.Table([path], 1 << 20).heads[0])
    return (statistics.mode(found), path) if found else None


def _lengths(form, path, places):
    return [sizes[form] for sizes, _ in _looked_at(path, places) if form in sizes]


def _looked_at(path, places):
    """Of each sound record among some of a shard: feature -> how many values it has; its checksum.

    Args:
      places: their offsets and lengths.
    """
    for offset, length in places.tolist():
        try:
            payload = records.read(path, offset, length)
            sizes = {name: len(value) for name, value in records.decode_example(payload).items()}
            yield sizes, google_crc32c.value(payload)
        except ValueError:  # BadRecord is one
            continue


def _head(path, places):
    """`_looked_at` of the first sound one, or None."""
    return next(_looked_at(path, places), None)


class Source:
    """The records of one stream, numbered 0 .. R - 1 in the order of the datasets and their sorted shards.

    Args:
      name: of the flag that holds the pattern, for messages.
      pattern: of the shards, see `datasets`.
      wanted: "picture", "text" or both.
      config: the whole Config.
      reader: `blocks.Reader`.
      lanes: of the order, see order.py.
      num_hosts: that share the lanes.

    `forms` maps each wanted thing to the feature that holds it; `broken` lists a BadRecord for each file whose framing
    breaks. Raises ValueError for an empty stream, a missing feature, a mix of ready ids and raw data, or ready ids of
    another length.
    """

    def __init__(self, name, pattern, wanted, config, reader, lanes=1, num_hosts=1):
        self.name, self.lanes, self._config, self._reader = name, lanes, config, reader
        parts = datasets(pattern)
        shards = [storage.glob(part) for part, _ in parts]
        paths = sum(shards, [])
        twice = next((path for path in paths if paths.count(path) > 1), None) if len(parts) > 1 else None
        if twice:
            raise ValueError(f"--{name}={pattern}: {twice} is in two of its datasets")
        self._table = blocks.Table(paths, config.data.block_bytes, reader.map)
        self.broken = self._table.broken
        ends = np.searchsorted(self._table.shard, np.cumsum([len(part) for part in shards])[:-1])
        counts = np.split(np.diff(self._table.first), ends)  # of records, by block
        self._parts = [(part, weight, count) for (part, weight), count in zip(parts, counts, strict=True)]
        for (part, _, count), files in zip(self._parts, shards, strict=True):
            if not len(count):
                cause = f"; {self.broken[0]}" if self.broken else ""
                raise ValueError(f"--{name}={part}: no records in {counted(len(files), 'file')}{cause}")
        self.forms, self.fingerprint = self._look(wanted)
        self._order = self._make_order(lanes)
        self._hold(lanes, num_hosts)

    def __len__(self):
        return len(self._table)

    @property
    def paths(self):
        """The shards, in order."""
        return self._table.paths

    @property
    def mean_bytes(self):
        """Bytes of a record, framing included."""
        return self._table.size.sum() / len(self)

    def describe(self):
        """One line: how much, in which form, and in which shares."""
        count, shards = counted(len(self), "record"), counted(len(self._table.paths), "shard")
        line = f"{self.name}: {count} in {shards}, {' and '.join(self.forms.values())}"
        shares = [f"{weight} from {part} ({counts.sum()})" for part, weight, counts in self._parts]
        return line if len(shares) == 1 else f"{line}, in turn {', '.join(shares)}"

    def ids(self, positions):
        """int64 [P], the records at these positions of the stream."""
        return self._order.ids(positions)

    def ask(self, ids):
        """Begins to read the blocks of these records."""
        self._reader.ask(self._table, np.unique(self._table.block_of(ids)).tolist())

    def load(self, record_id):
        """Feature -> value of one record: checked int64 ids, uint8 [S, S, 3] pixels ("image"), or str. Raises
        BadRecord, also for a record that lacks what the others of the stream hold."""
        features = self.features(record_id)
        try:
            return {form: self._value(form, features) for form in self.forms.values()}
        except ValueError as error:
            raise self.bad(record_id, error) from None

    def features(self, record_id):
        """Feature -> value of one record as it is stored, see `records.decode_example`. Raises BadRecord."""
        block, number = self._find(record_id)
        payload = block.payload(number)
        try:
            return records.decode_example(payload)
        except ValueError as error:
            raise block.bad(number, error) from None

    def bad(self, record_id, cause):
        """The BadRecord that says that `cause` is wrong with this record."""
        block, number = self._find(record_id)
        return block.bad(number, cause)

    def _find(self, record_id):
        """The block of a record, and its number in it."""
        block = int(self._table.block_of(record_id))
        return self._reader.get(self._table, block), int(record_id - self._table.first[block])

    def _make_order(self, lanes):
        seed, window = self._config.train.seed, self._config.data.shuffle_blocks
        names = [self.name, *(f"{self.name} {number}" for number in range(1, len(self._parts)))]
        orders = [order.Order(seed, name, counts, window, lanes)
                  for name, (_, _, counts) in zip(names, self._parts, strict=True)]  # fmt: skip
        return order.Mixture(orders, [weight for _, weight, _ in self._parts], lanes)

    def _hold(self, lanes, num_hosts):
        """Room for the windows of this host's lanes, and a quarter more: one that goes on to its next window throws out
        what was used least lately, and of 65 records hardly ever a quarter of the window's time passes between two."""
        window = self._config.data.shuffle_blocks * self._config.data.block_bytes * len(self._parts)
        mine = -(-lanes // num_hosts) + (lanes % num_hosts > 0)
        self._reader.hold(min(int(1.25 * window * mine), int(self._table.size.sum())))

    def _look(self, wanted):
        """The forms, and a fingerprint of names, places and first records: whoever wrote a shard wrote all of it alike.

        A shard whose first records are damaged is passed over.
        """
        table = self._table
        heads = [head for head in self._reader.map(_head, table.paths, table.heads) if head is not None]
        if not heads:
            raise ValueError(f"--{self.name}: all {len(self)} records are damaged, or all that its shards begin with")
        forms = {}
        for thing in wanted:
            kinds = {next((form for form in FORMS[thing] if form in names), None) for names, _ in heads}
            if kinds == set(FORMS[thing]):
                raise ValueError(
                    f"--{self.name}: some shards hold {FORMS[thing][0]!r}, others only {FORMS[thing][1]!r}: "
                    "all of a stream must hold the same"
                )
            if kinds == {None}:
                raise ValueError(f"--{self.name}: its records hold neither {FORMS[thing][0]!r} nor {FORMS[thing][1]!r}")
            forms[thing] = (kinds - {None}).pop()
        for form in LENGTHS.keys() & forms.values():
            given = getattr(self._config.model, LENGTHS[form])
            found = [sizes[form] for sizes, _ in heads if form in sizes]
            if given not in found + _lengths(form, table.paths[0], table.heads[0]):  # one alone is a damaged record
                place = f"{form} of --{self.name} ({table.paths[0]})"
                raise ValueError(f"--{LENGTHS[form]}={given}: the {place} have {found[0]}")
        digest = google_crc32c.Checksum(repr((table.paths, [crc for _, crc in heads])).encode())
        for values in (table.first, table.shard, table.offset, table.size):
            digest.update(values.tobytes())
        return forms, digest.hexdigest().decode()

    def _value(self, form, features):
        if form not in features:
            raise ValueError(f"no {form!r} in it")
        value, model, data = features[form], self._config.model, self._config.data
        if form == "image_ids":
            return _check_ids(form, value, model.num_image_tokens, model.codebook_size)
        if form == "text_ids":
            return _check_sentence(_check_ids(form, value, model.num_text_tokens, model.vocab_size))
        if not isinstance(value, list) or len(value) != 1:
            raise ValueError(f"{form!r} must be one string of bytes")
        if form == "image":
            return images.decode(value[0], data.image_size, data.max_image_pixels)
        return _utf8(value[0])


def _utf8(data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError("the text is not UTF-8") from None


def _check_ids(form, ids, count, limit):
    if isinstance(ids, list) or ids.dtype != np.int64:
        raise ValueError(f"{form!r} must be integers")
    if len(ids) != count:
        flag = f"--num_{'image' if form == 'image_ids' else 'text'}_tokens"
        raise ValueError(f"{form!r} has {len(ids)} ids, must have {count} ({flag})")
    wrong = ids[(ids < 0) | (ids >= limit)]
    if len(wrong):
        raise ValueError(f"{form!r} holds {wrong[0]}, must be in [0, {limit})")
    return ids


def _check_sentence(ids):
    """Words, one EOS, PAD to the end."""
    end = int(np.argmax(ids == EOS))
    if ids[0] in (PAD, EOS):
        raise ValueError("empty text")
    if ids[end] != EOS or (ids[:end] == PAD).any() or (ids[end + 1 :] != PAD).any():
        raise ValueError(f"'text_ids' must be words, then one EOS ({EOS}), then PAD ({PAD}) to the end")
    return ids
