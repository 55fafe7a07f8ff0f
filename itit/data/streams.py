"""Paired, picture-only and text-only records to the batch of a step.

A batch is a pure function of (config, step): the order comes from `order.py`, a damaged record is replaced by the next
of its lane, and every host takes its rows of the same global batch. Blocks of records are read ahead of their step by
`blocks.py`; pictures are decoded by workers.

Shapes: B batch (rows of this host), N image tokens, L text tokens, S side of a picture.
"""

import concurrent.futures
import os
import threading

import numpy as np
from absl import logging

from itit import storage, text_encoders
from itit.data import made_with, order
from itit.data.blocks import Reader
from itit.data.records import BadRecord
from itit.data.source import Source
from itit.tasks import STREAMS, of_stream
from itit.text_encoders import EOS

FIELDS = {"image": "images", "image_ids": "image_ids", "text": "text_ids", "text_ids": "text_ids"}
STEPS_AHEAD = 64  # whose blocks may be read
CHUNK = 8  # records that a worker takes at once


class Streams:
    """The data of a run.

    Args:
      config: resolved Config.
      host_index, num_hosts: which equal share of each task's rows `batch` returns.
      num_parts: microbatches, of each of which a host has a share; 1: it has one of the batch.

    Batches of several steps may be made at once, on threads of the caller; in order, their blocks are read ahead.
    `num_bad` counts damaged records, `num_cut` texts that were longer than L.

    Raises ValueError, one line, for missing, empty or mixed data, ready ids of another image tokenizer, vocabulary or
    length, and (then or later) more than max_bad_records damaged records.
    """

    def __init__(self, config, host_index=0, num_hosts=1, num_parts=1):
        self._config, self._host_index, self._num_hosts, self._num_parts = config, host_index, num_hosts, num_parts
        self.num_bad, self._bad, self._lock, self._planned = 0, {}, threading.Lock(), 0
        self.reader = Reader(config.data.read_requests, config.data.read_ahead_mib << 20)
        workers = num_workers(config)
        self._map = concurrent.futures.ThreadPoolExecutor(workers, "records").map if workers else map
        self.sources = {name: self._source(name) for name in STREAMS if self._sizes(name)}
        self._eval = self._eval_source()
        made_with.check(self._all_sources(), config.data)
        for source in self._all_sources():
            for line in (*made_with.incomplete(source.paths), *made_with.unfinished(source.paths)):
                logging.warning("--%s: %s", source.name, line)
        self._tokenizer = self._make_tokenizer()

    @property
    def num_cut(self):
        return self._tokenizer.num_cut if self._tokenizer else 0

    @property
    def num_eval(self):
        """Pairs that `sample_batch` can give before it repeats; 0 where there are none."""
        return len(self._eval) if self._eval else 0

    def describe(self):
        """One line a stream: records, shards, what they hold."""
        return "\n".join(source.describe() for source in self._all_sources())

    def identity(self):
        """What must be the same on all hosts: name -> text."""
        vocabulary = self._config.data.vocabulary
        found = _data_of(self._all_sources())
        return found | ({"data of --vocabulary": storage.sha256(vocabulary)} if vocabulary else {})

    def order(self):
        """All that decides which records a step trains on: name -> text."""
        config = self._config
        found = {"--seed": config.train.seed, "--block_bytes": config.data.block_bytes,
                 "--shuffle_blocks": config.data.shuffle_blocks}  # fmt: skip
        for name in self.sources:
            found |= {f"--{task}_batch": size for task, size in self._sizes(name).items()}
        return {name: str(value) for name, value in found.items()} | _data_of(self.sources.values())

    def batch(self, step):
        """This host's rows of one step.

        Returns:
          "TASK/FIELD" -> array, for the tasks with a batch size above 0; those of a stream get distinct rows of it.
          Fields: "image_ids" int64 [B, N] or "images" uint8 [B, S, S, 3], whichever the records hold, and "text_ids"
          int64 [B, L].
        """
        self._read_ahead(step)
        out = {}
        for name, source in self.sources.items():
            places = self._places(name, step)
            mine = np.concatenate(list(places.values()))
            fields = self._rows(source, mine)
            if self._config.data.random_flip and "images" in fields:
                flips = order.coins(self._config.train.seed, name, mine)
                fields["images"][flips] = fields["images"][flips, :, ::-1]
            cuts = np.cumsum([len(part) for part in places.values()])[:-1]
            for field, values in fields.items():
                for task, rows in zip(places, np.split(values, cuts), strict=True):
                    out[f"{task}/{field}"] = rows
        return out

    def rows(self, step):
        """Task -> int64 [B], the places in its stream that this host's rows of a step have; no other host has them."""
        return {task: places for name in self.sources for task, places in self._places(name, step).items()}

    def _places(self, name, step):
        sizes = self._sizes(name)
        parts = order.positions(step, list(sizes.values()), self._lanes(name))
        mine = [part.reshape(self._num_parts, self._num_hosts, -1)[:, self._host_index].ravel() for part in parts]
        return dict(zip(sizes, mine, strict=True))

    def sample_batch(self, num_rows):
        """`num_rows` pairs of eval_data (or paired_data), the same at every call: "images" or "image_ids", "text_ids".

        Raises ValueError if neither is given.
        """
        if self._eval is None:
            raise ValueError(
                "samples need pairs: give --eval_data or --paired_data, or say --sample_every=0 --eval_every=0"
            )
        return self._rows(self._eval, np.arange(num_rows))

    def _read_ahead(self, step):
        """Asks for the blocks of later steps, twice as fast as steps go by, until there is no room."""
        with self._lock:
            if not step < self._planned <= step + STEPS_AHEAD:
                self.reader.forget()
                self._planned = step + 1
            for planned in range(self._planned, min(self._planned + 2, step + STEPS_AHEAD)):
                if not self.reader.has_room():
                    return
                for name, source in self.sources.items():
                    source.ask(source.ids(np.concatenate(list(self._places(name, planned).values()))))
                self._planned = planned + 1

    def _lanes(self, name):
        sizes = self._sizes(name)
        return order.num_lanes(list(sizes.values())) if sizes else 1

    def _sizes(self, name):
        """Task -> rows of a global batch, for the tasks of a stream that are on."""
        sizes = {task: getattr(self._config.objective, f"{task}_batch") for task in of_stream(name)}
        for task, size in sizes.items():
            if size % self._num_hosts:
                raise ValueError(f"--{task}_batch={size}: must be a multiple of the number of hosts, {self._num_hosts}")
        return {task: size for task, size in sizes.items() if size}

    def _source(self, name):
        pattern = getattr(self._config.data, name)
        if not pattern:
            task = next(iter(self._sizes(name)))
            raise ValueError(f"--{name} is empty: --{task}_batch={self._sizes(name)[task]} needs it")
        return self._open(name, pattern, STREAMS[name])

    def _eval_source(self):
        data, wanted = self._config.data, STREAMS["paired_data"]
        if not data.eval_data:
            paired = self.sources.get("paired_data")
            return paired or (self._open("paired_data", data.paired_data, wanted) if data.paired_data else None)
        return self._open("eval_data", data.eval_data, wanted)

    def _open(self, name, pattern, wanted):
        try:
            lanes = self._lanes(name) if name in STREAMS else 1
            source = Source(name, pattern, wanted, self._config, self.reader, lanes, self._num_hosts)
        except ValueError as error:
            raise ValueError(str(error) if f"--{name}" in str(error) else f"--{name}: {error}") from None
        if self._config.data.random_flip and source.forms.get("picture") == "image_ids":
            raise ValueError(f"--random_flip: --{name} holds ready image_ids, which cannot be flipped")
        self._bad[name] = set()
        for error in source.broken:
            self._count(error)
        return source

    def _all_sources(self):
        extra = [self._eval] if self._eval and self._eval not in self.sources.values() else []
        return [*self.sources.values(), *extra]

    def _make_tokenizer(self):
        data = self._config.data
        raw = [source.name for source in self._all_sources() if source.forms.get("text") == "text"]
        if not raw:
            return None
        if not data.vocabulary:
            raise ValueError(f"--vocabulary is empty: --{raw[0]} holds texts that are not ready ids")
        return text_encoders.reader(self._config)  # brings TensorFlow in, which records of ready ids do without

    def _rows(self, source, places):
        """Field -> array of the records at these places, damaged ones replaced by the next of their lane."""
        rows, places, pending = [None] * len(places), places.copy(), np.arange(len(places))
        while len(pending):
            ids = self._next_good(source, places, pending)
            loaded = self._load(source, ids)
            with self._lock:
                for row, record_id, value in zip(pending, ids, loaded, strict=True):
                    rows[row] = None if isinstance(value, BadRecord) else value
                    if rows[row] is None and record_id not in self._bad[source.name]:
                        self._bad[source.name].add(record_id)
                        self._count(value)
            pending = np.array([row for row in pending if rows[row] is None], np.int64)
        return {FIELDS[form]: np.stack([row[form] for row in rows]) for form in source.forms.values()}

    def _next_good(self, source, places, pending):
        """Moves the places of pending rows past the known bad records, and returns the ids there."""
        bad = self._bad[source.name]
        if len(bad) == len(source):
            raise ValueError(f"--{source.name}: all {len(source)} records are damaged")
        while True:
            ids = source.ids(places[pending]).tolist()
            moved = [row for row, record_id in zip(pending, ids, strict=True) if record_id in bad]
            if not moved:
                source.ask(ids)
                return ids
            places[moved] += source.lanes

    def _load(self, source, ids):
        """For each id a dict of features, texts as ids, or its BadRecord."""
        chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        values = [value for chunk in self._map(lambda ids: _load_all(source, ids), chunks) for value in chunk]
        if source.forms.get("text") != "text":
            return values
        texts = [value for value in values if not isinstance(value, BadRecord)]
        for value, text_ids in zip(texts, self._tokenizer([value["text"] for value in texts]), strict=True):
            value["text"] = text_ids
        # Only the tokenizer can tell: it drops blanks and control characters.
        return [
            source.bad(record_id, "empty text")
            if not isinstance(value, BadRecord) and value["text"][0] == EOS
            else value
            for record_id, value in zip(ids, values, strict=True)
        ]

    def _count(self, error):
        self.num_bad += 1
        limit = self._config.data.max_bad_records
        if self.num_bad <= limit + 1:  # batches ahead meet further ones while the run is ending
            logging.warning("damaged record: %s", error)
        if self.num_bad > limit:
            raise ValueError(f"{error} (damaged records so far: {self.num_bad}, above --max_bad_records={limit})")


def _data_of(sources):
    """What tells the data of streams from others: name -> text."""
    return {f"data of --{source.name}": f"{source.fingerprint} ({source.describe()})" for source in sources}


def num_workers(config):
    """Threads that decode records."""
    # Python's own share of a record's work, a tenth, is done by one thread at a time.
    return min(16, os.cpu_count() or 1) if config.data.num_workers < 0 else config.data.num_workers


def _load_all(source, ids):
    out = []
    for record_id in ids:
        try:
            out.append(source.load(record_id))
        except BadRecord as error:
            out.append(error)
    return out
