"""One stream's records: where they lie, what they hold, and the checks that each passes before it is trained on.

Shapes: N image tokens, L text tokens, R records.
"""

import numpy as np

from itit import storage
from itit.data import images, records
from itit.data.text import EOS, PAD

# What a stream may be asked for, and its two forms in a record: ready ids come first.
FORMS = {"picture": ("image_ids", "image"), "text": ("text_ids", "text")}


class Source:
    """The records of one stream, numbered 0 .. R - 1 in the order of the sorted shards.

    Args:
      name: of the flag that holds the pattern, for messages.
      pattern: of the shards.
      wanted: "picture", "text" or both.
      config: the whole Config.
      pool: executor that indexes the shards.

    `forms` maps each wanted thing to the feature that holds it; `broken` lists a BadRecord for each file whose framing
    breaks. Raises ValueError for an empty stream, a missing feature, or a mix of ready ids and raw data.
    """

    def __init__(self, name, pattern, wanted, config, pool):
        self.name, self._config = name, config
        self._paths = storage.glob(pattern)
        scans = list(pool.map(records.scan, self._paths))
        self.broken = [broken for _, broken in scans if broken]
        self._shards = np.repeat(np.arange(len(scans)), [len(spans) for spans, _ in scans])
        self._spans = np.concatenate([spans for spans, _ in scans])
        if not len(self._spans):
            cause = f"; {self.broken[0]}" if self.broken else ""
            raise ValueError(f"--{name}={pattern}: no records in {len(self._paths)} files{cause}")
        self.forms = self._find_forms(wanted, pool)

    def __len__(self):
        return len(self._spans)

    def describe(self):
        """One line: how much, and in which form."""
        shards = f"{len(self._paths)} shard" + ("s" if len(self._paths) > 1 else "")
        return f"{self.name}: {len(self)} records in {shards}, {' and '.join(self.forms.values())}"

    def load(self, record_id):
        """Feature -> value of one record: checked int64 ids, uint8 [S, S, 3] pixels ("image"), or str. Raises
        BadRecord, also for a record that lacks what the others of the stream hold."""
        features = self._features(record_id)
        try:
            return {form: self._value(form, features) for form in self.forms.values()}
        except ValueError as error:
            raise self.bad(record_id, error) from None

    def bad(self, record_id, cause):
        """The BadRecord that says that `cause` is wrong with this record."""
        return records.BadRecord(self._paths[self._shards[record_id]], int(self._spans[record_id, 0]), cause)

    def _features(self, record_id):
        payload = records.read(self._paths[self._shards[record_id]], *self._spans[record_id].tolist())
        try:
            return records.decode_example(payload)
        except ValueError as error:
            raise self.bad(record_id, error) from None

    def _find_forms(self, wanted, pool):
        """Looks at the first sound record of each shard: whoever wrote a shard wrote all of it alike."""
        shards = np.unique(self._shards)
        found = [names for names in pool.map(self._first_names, shards) if names is not None]
        if not found:
            raise ValueError(f"--{self.name}: all {len(self)} records are damaged")
        forms = {}
        for thing in wanted:
            kinds = {next((form for form in FORMS[thing] if form in names), None) for names in found}
            if kinds == set(FORMS[thing]):
                raise ValueError(
                    f"--{self.name}: some shards hold {FORMS[thing][0]!r}, others only {FORMS[thing][1]!r}: "
                    "all of a stream must hold the same"
                )
            if kinds == {None}:
                raise ValueError(f"--{self.name}: its records hold neither {FORMS[thing][0]!r} nor {FORMS[thing][1]!r}")
            forms[thing] = (kinds - {None}).pop()
        return forms

    def _first_names(self, shard):
        for record_id in np.flatnonzero(self._shards == shard):
            try:
                return set(self._features(record_id))
            except records.BadRecord:
                continue
        return None

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
        raise ValueError(f"{form!r} has {len(ids)} ids, must have {count}")
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
