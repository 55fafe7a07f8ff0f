"""Shards to shards of ready ids: blocks are read ahead, records decoded on threads, pictures tokenized on the device,
and finished shards stored, all at the same time.

What a shard holds depends on its source and the settings alone: its records go through the tokenizer in the same
batches, whatever is done beside them.

Shapes: B records of a batch, S picture side, N image tokens, L text tokens.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
import torch
import tqdm

from itit import config as config_lib
from itit.backends.connect import connect
from itit.checkpoint.weights import load_vqgan
from itit.config import knob
from itit.data import blocks, made_with, records, shard_index, streams
from tools.data.views import views
from tools.spread import workers

BATCH_SIZE = 64
CHUNK = 8  # records that a thread decodes at once; a part of BATCH_SIZE
READS, BLOCKS_AHEAD = 16, 32


@dataclasses.dataclass(frozen=True)
class Settings:
    """What shards are tokenized with."""

    vqgan: str = knob("", "Folder of the image tokenizer; empty: pictures stay as they are.")
    vocabulary: str = knob("", "SentencePiece model (.model); empty: texts stay as they are.")
    num_text_tokens: int = knob(64, "Text tokens with EOS; longer texts are cut.")
    keep: bool = knob(False, "Keep `image` and `text` beside their ids.")
    num_crops: int = knob(1, "Crops of each picture: the centre, as in training, and others.")
    flip: bool = knob(False, "Each crop also mirrored (wrong where texts say left or right).")
    backend: str = knob("auto", "Where the image tokenizer runs, as in training.", ("auto", "cpu", "cuda", "xla"))
    num_workers: int = knob(0, "Threads that decode; 0: one a processor, up to 16.")

    def check(self):
        """Raises ValueError naming the flag."""
        if not self.vqgan and not self.vocabulary:
            raise ValueError("--vqgan and --vocabulary are both missing: give one or both")
        for name, least in {"num_text_tokens": 2, "num_crops": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name}={getattr(self, name)}: must be at least {least}")
        if self.keep and (self.num_crops > 1 or self.flip):
            raise ValueError("--keep: not with --num_crops or --flip, whose ids are of parts of the picture")

    def recorded(self):
        """What stays beside the shards: all that their bytes depend on, but for the source."""
        return {
            "keep": self.keep, "num_text_tokens": self.num_text_tokens,
            "vqgan": self.vqgan and made_with.checksum(made_with.weights_of("vqgan", self.vqgan)),
            "vocabulary": self.vocabulary and made_with.checksum(self.vocabulary),
            "num_crops": self.num_crops, "flip": self.flip,
        }  # fmt: skip


class Pictures:
    """Encoded pictures -> ids of their views (see views.py), by the tokenizer in `folder` on a backend.

    Raises ValueError where it cannot be loaded.
    """

    def __init__(self, folder, backend, num_crops=1, flip=False):
        if backend.hosts.count > 1:
            raise ValueError(f"{backend.hosts.count} hosts in one backend: ids are made on each host by itself")
        self._backend, self._model = backend, backend.adopt(load_vqgan(folder).requires_grad_(False))
        self._crops, self._flip = num_crops, flip

    @property
    def device(self):
        """Where it runs."""
        return self._backend.device

    def decode(self, data, key):
        """bytes of a picture -> its views, list of uint8 [S, S, 3]."""
        limit = config_lib.DataConfig.max_image_pixels
        return views(data, key, self._model.config.image_size, limit, self._crops, self._flip)

    def begin(self, pixels):
        """Begins to tokenize uint8 [S, S, 3], a list of any number. Returns what waits for their ids, int64 [.., N]."""
        parts = [pixels[start : start + BATCH_SIZE] for start in range(0, len(pixels), BATCH_SIZE)]
        begun = [self._begin(np.stack(part)) for part in parts]
        return lambda: np.concatenate([ids.cpu().numpy()[: len(p)] for ids, p in zip(begun, parts, strict=True)])

    def _begin(self, rows):
        if self._backend.device.type == "xla":  # compiles anew for every number of rows
            rows = np.pad(rows, [(0, BATCH_SIZE - len(rows)), (0, 0), (0, 0), (0, 0)])
        batch = self._backend.to_device({"images": rows}, whole=True)
        return self._backend.sampler(image_ids, self._model, batch["images"])


@torch.no_grad()
def image_ids(model, pixels):
    """uint8 [B, S, S, 3] -> int64 [B, N]."""
    return model.tokenize(pixels)


class Tokenizers(NamedTuple):
    """What makes ids of `image` and of `text`: `Pictures`, and a function of a list of str to int64 [B, L]; or None."""

    image: Pictures | None = None
    text: object = None


@functools.lru_cache(1)
def tokenizers_of(settings):
    """`Tokenizers`, made once in a process."""
    pictures = texts = None
    if settings.vqgan:  # first, because torch_xla must be imported before TensorFlow
        backend = connect(config_lib.TrainConfig(backend=settings.backend))
        pictures = Pictures(settings.vqgan, backend, settings.num_crops, settings.flip)
    if settings.vocabulary:
        # TensorFlow is slow to load and not on every machine; pictures do without.
        from itit.data.preprocess import TextTokenizer

        texts = TextTokenizer(settings.vocabulary, settings.num_text_tokens)
    return Tokenizers(pictures, texts)


def convert_all(settings, pairs, num_workers, bar):
    """`convert` as a function of tasks (see spread/distribution.py); one process takes all, for it has the device."""
    if bar is None and not settings.num_workers:  # a task of many on a machine
        settings = dataclasses.replace(settings, num_workers=torch.get_num_threads())
    yield from convert(settings, tokenizers_of(settings), pairs, bar)


def convert(settings, tokenizers, pairs, bar=None):
    """Writes shards, one after the other.

    Args:
      pairs: list of (path of the source, path of the new shard).
      bar: of tqdm.

    Yields, of each that is stored, a dict: `records`, and `cut`, texts that were too long among all read since the one
    before. Raises BadRecord for a damaged record and for one with nothing to tokenize.
    """
    bar = bar if bar is not None else tqdm.tqdm(disable=True)
    threads, cut = settings.num_workers or streams.num_workers(config_lib.Config()), _num_cut(tokenizers)
    with contextlib.ExitStack() as stack:
        reads, decodes, closes = (stack.enter_context(concurrent.futures.ThreadPoolExecutor(count))
                                  for count in (READS, threads, 1))  # fmt: skip
        tables = list(reads.map(_open, [source for source, _ in pairs]))
        bar.reset(sum(map(len, tables)))
        places = ((table, block) for table in tables for block in range(len(table.size)))
        read = stack.enter_context(contextlib.closing(workers.ahead(reads, _read, places, BLOCKS_AHEAD)))
        decode, depth = functools.partial(_decode, tokenizers), BATCH_SIZE // CHUNK + threads
        chunks = workers.ahead(decodes, decode, _chunks(tables, read), depth)
        batches = _batches(tables, stack.enter_context(contextlib.closing(chunks)))
        tokenized = _tokenized(batches, tokenizers, settings.keep)
        written = (_write(tokenized, target, len(table), bar) for (_, target), table in zip(pairs, tables, strict=True))
        # The next shard is begun while one is being stored.
        for count in workers.ahead(closes, _close, written, 1):
            yield {"records": count, "cut": _num_cut(tokenizers) - cut}
            cut = _num_cut(tokenizers)


def _num_cut(tokenizers):
    return getattr(tokenizers.text, "num_cut", 0)


def _write(tokenized, target, count, bar):
    """Fills a shard of the next `count` records. Returns what `_close` needs, for its file is still open."""
    with contextlib.ExitStack() as shard:
        writer = shard.enter_context(records.RecordWriter(target))
        for batch in itertools.islice(tokenized, -(-count // BATCH_SIZE)):
            for features in batch:
                for example in _variants(features):
                    writer.write(records.encode_example(example))
            bar.update(len(batch))
        return shard.pop_all(), writer, target, count


def _close(filled):
    """Stores a shard. Its index comes before it appears: it is never without."""
    shard, writer, target, count = filled
    with shard:
        shard_index.write(target, writer.spans)
    return count


def _open(path):
    table = blocks.Table([path], config_lib.DataConfig.block_bytes)
    if table.broken:
        raise table.broken[0]
    return table


def _read(place):
    table, block = place
    return table.read(block)


def _chunks(tables, read):
    """Yields lists of up to CHUNK (`Block`, number of a record in it); none has records of two shards."""
    for table in tables:
        counts = (table.first[1:] - table.first[:-1]).tolist()
        rows = ((block, number) for count, block in zip(counts, read, strict=False) for number in range(count))
        while chunk := list(itertools.islice(rows, CHUNK)):
            yield chunk


def _batches(tables, chunks):
    """Yields lists of up to BATCH_SIZE decoded records; none has records of two shards."""
    for table in tables:
        for start in range(0, len(table), BATCH_SIZE):
            count = min(BATCH_SIZE, len(table) - start)
            yield list(itertools.chain.from_iterable(itertools.islice(chunks, -(-count // CHUNK))))


def _decode(tokenizers, chunk):
    """On a thread: for each record (its features as they are, the views of its picture or None, its text or None)."""
    return [_decode_one(tokenizers, block, number) for block, number in chunk]


def _decode_one(tokenizers, block, number):
    payload, pixels, text = block.payload(number), None, None
    try:
        features = records.decode_example(payload)
        for name, value in features.items():
            if isinstance(value, list) and len(value) != 1:
                raise ValueError(f"{name!r} must be one string of bytes")
        # A feature is read as a list of byte strings and written as one string.
        features = {name: value[0] if isinstance(value, list) else value for name, value in features.items()}
        key = features.get("key")
        if tokenizers.image and "image" in features:
            pixels = tokenizers.image.decode(features["image"], key)
            if len(pixels) > 1 and not isinstance(key, bytes):
                raise ValueError("no 'key' to name its views by")
        if tokenizers.text and "text" in features:
            text = features["text"].decode()
    except ValueError as error:
        raise block.bad(number, error) from None
    if pixels is None and text is None:
        wanted = [repr(name) for name, tokenizer in tokenizers._asdict().items() if tokenizer]
        raise block.bad(number, f"holds no {' or '.join(wanted)}")
    return features, pixels, text


def _tokenized(batches, tokenizers, keep):
    """Yields the features of a batch with all ids, each a list of rows, one a view. The device is given the next batch
    before the ids of one are waited for."""
    before = None
    for batch in batches:
        pixels = [view for _, found, _ in batch for view in found or ()]
        begun = batch, tokenizers.image.begin(pixels) if pixels else None
        if before:
            yield _finish(*before, tokenizers, keep)
        before = begun
    if before:
        yield _finish(*before, tokenizers, keep)


def _finish(batch, wait, tokenizers, keep):
    texts = [text for _, _, text in batch if text is not None]
    text_ids, image_ids = iter(tokenizers.text(texts) if texts else ()), iter(wait() if wait else ())
    for features, pixels, text in batch:
        if pixels is not None:
            features["image_ids"] = [next(image_ids) for _ in pixels]
        if text is not None:
            features["text_ids"] = [next(text_ids)]
        for name, tokenizer in tokenizers._asdict().items():
            if tokenizer and not keep:
                features.pop(name, None)
    return [features for features, _, _ in batch]


def _variants(features):
    """Yields the records that one becomes: one a view, if its picture has several."""
    ids = {name: features.pop(name) for name in ("image_ids", "text_ids") if isinstance(features.get(name), list)}
    count = max(map(len, ids.values()))
    for number in range(count):
        variant = {name: rows[number % len(rows)] for name, rows in ids.items()}
        yield features | variant | ({"key": features["key"] + b"#%d" % number} if count > 1 else {})
