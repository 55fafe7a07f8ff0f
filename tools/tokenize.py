"""`python -m tools.tokenize --input=SHARDS --output=DIR/PREFIX --vqgan=DIR --vocabulary=FILE`: ready ids from raw data.

Writes the same records in the same order, with `image_ids` for `image` (--vqgan) and `text_ids` for `text`
(--vocabulary); shard i of k becomes PREFIX-0000i-of-0000k.tfrecord, with its index. A finished shard is skipped on a
rerun, an unfinished one is never visible. PREFIX-settings.json holds what the shards were made with; a rerun must be
given the same, and so must a training on them.

Under torchrun each process makes some of the shards, on a device of its own.

With --num_crops or --flip a record becomes several, one a view of its picture; their ids are KEY#0, KEY#1, ...

Shapes: B records of a batch, S picture side, N image tokens, L text tokens.
"""

# `python tools/x.py` looks for Python's own module `tokenize` here first.
if __name__ == "tokenize":
    raise SystemExit("error: run it from the root of the repository as a module: python -m tools.NAME")

import numpy as np
import torch
import tqdm
from absl import flags

from itit import config as config_lib
from itit import locks, storage
from itit.backends.connect import connect
from itit.backends.processes import index_started, num_started
from itit.checkpoint.weights import load_vqgan
from itit.console import counted
from itit.data import made_with, records, shard_index
from itit.flags import run_main
from tools.data.splits import settle
from tools.data.views import views

BATCH_SIZE = 64


class ImageTokenizer:
    """Encoded pictures -> ids of their views (see views.py), by the tokenizer in `folder` on a backend.

    Raises ValueError where it cannot be loaded.
    """

    def __init__(self, folder, backend, num_crops=1, flip=False):
        if backend.hosts.count > 1:
            raise ValueError(f"{backend.hosts.count} hosts: ids are made on one at a time")
        self._backend, self._model = backend, backend.adopt(load_vqgan(folder).requires_grad_(False))
        self._crops, self._flip = num_crops, flip

    def decode(self, data, key):
        """bytes of a picture -> its views, list of uint8 [S, S, 3]."""
        limit = config_lib.DataConfig.max_image_pixels
        return views(data, key, self._model.config.image_size, limit, self._crops, self._flip)

    def __call__(self, pixels):
        """list of any number of uint8 [S, S, 3] -> int64 [.., N]."""
        return np.concatenate([self._batch(pixels[i : i + BATCH_SIZE]) for i in range(0, len(pixels), BATCH_SIZE)])

    def _batch(self, pixels):
        rows = np.stack(pixels)
        if self._backend.device.type == "xla":  # compiles anew for every number of rows
            rows = np.pad(rows, [(0, BATCH_SIZE - len(rows)), (0, 0), (0, 0), (0, 0)])
        batch = self._backend.to_device({"images": rows}, whole=True)
        return self._backend.sampler(image_ids, self._model, batch["images"]).cpu().numpy()[: len(pixels)]


@torch.no_grad()
def image_ids(model, pixels):
    """uint8 [B, S, S, 3] -> int64 [B, N]."""
    return model.tokenize(pixels)


def make_tokenizers(vqgan, vocabulary, num_text_tokens, num_crops=1, flip=False, backend="auto"):
    """{feature to read: (feature to write, decoder of its bytes and the id to a list, tokenizer of such a list)}."""
    if not vqgan and not vocabulary:
        raise ValueError("--vqgan and --vocabulary are both missing: give one or both")
    tokenizers = {}
    if vqgan:  # first, because torch_xla must be imported before TensorFlow
        device = connect(config_lib.TrainConfig(backend=backend), each=True)
        image_tokenizer = ImageTokenizer(vqgan, device, num_crops, flip)
        tokenizers["image"] = ("image_ids", image_tokenizer.decode, image_tokenizer)
    if vocabulary:
        # TensorFlow is slow to load and not on every machine; pictures do without.
        from itit.data.preprocess import TextTokenizer

        tokenizers["text"] = ("text_ids", lambda data, key: [data.decode()], TextTokenizer(vocabulary, num_text_tokens))
    return tokenizers


def convert(source, target, tokenizers, keep, bar):
    """Writes one shard. Raises BadRecord for a damaged record and for one with nothing to tokenize."""
    spans, broken = records.scan(source)
    if broken:
        raise broken
    with records.RecordWriter(target) as writer:
        for start in range(0, len(spans), BATCH_SIZE):
            batch = [_read(source, *span, tokenizers) for span in spans[start : start + BATCH_SIZE].tolist()]
            for name, (written, _, tokenizer) in tokenizers.items():
                rows = [(features, values[name]) for features, values in batch if name in values]
                if rows:
                    ids = iter(tokenizer([value for _, values in rows for value in values]))
                    for features, values in rows:
                        features[written] = [next(ids) for _ in values]
                        if not keep:
                            del features[name]
            for features, _ in batch:
                for example in _variants(features):
                    writer.write(records.encode_example(example))
            bar.update(len(batch))
        shard_index.write(target, writer.spans)  # before the shard appears: it is never without


def _variants(features):
    """Yields the records that one becomes: one a view, if its picture has several."""
    ids = {name: features.pop(name) for name in ("image_ids", "text_ids") if isinstance(features.get(name), list)}
    count = max(map(len, ids.values()))
    for number in range(count):
        variant = {name: rows[number % len(rows)] for name, rows in ids.items()}
        yield features | variant | ({"key": features["key"] + b"#%d" % number} if count > 1 else {})


def _read(path, offset, length, tokenizers):
    """(features of a record as they are, {feature to tokenize: list of decoded values})."""
    payload = records.read(path, offset, length)
    try:
        features = records.decode_example(payload)
        for name, value in features.items():
            if isinstance(value, list) and len(value) != 1:
                raise ValueError(f"{name!r} must be one string of bytes")
        # A feature is read as a list of byte strings and written as one string.
        features = {name: value[0] if isinstance(value, list) else value for name, value in features.items()}
        key = features.get("key")
        values = {name: decode(features[name], key) for name, (_, decode, _) in tokenizers.items() if name in features}
        if not isinstance(key, bytes) and any(len(found) > 1 for found in values.values()):
            raise ValueError("no 'key' to name its views by")
    except ValueError as error:
        raise records.BadRecord(path, offset, error) from None
    if not values:
        raise records.BadRecord(path, offset, f"holds no {' or '.join(map(repr, tokenizers))}")
    return features, values


def run(pattern, output, vqgan, vocabulary, num_text_tokens, keep, num_crops=1, flip=False, backend="auto"):
    """Converts every shard that is not yet there.

    Raises ValueError where `output` was begun with other settings, or another process is at work on it.
    """
    if keep and (num_crops > 1 or flip):
        raise ValueError("--keep: not with --num_crops or --flip, whose ids are of parts of the picture")
    sources = storage.glob(pattern)
    settings = {
        "input": sources, "keep": keep, "num_text_tokens": num_text_tokens,
        "vqgan": vqgan and made_with.checksum(made_with.weights_of("vqgan", vqgan)),
        "vocabulary": vocabulary and made_with.checksum(vocabulary),
        "num_crops": num_crops, "flip": flip,
    }  # fmt: skip
    index, count = index_started(), num_started()
    share = f"{output}-{index}-of-{count}" if count > 1 else output
    with locks.hold(locks.beside(share), f"--output={output}"):
        storage.remove_rests(output.rpartition("/")[0] or ".")
        settle(made_with.path_of(output), settings, {"num_crops": 1, "flip": False})
        _run(sources, output, (vqgan, vocabulary, num_text_tokens, num_crops, flip, backend), keep, (index, count))


def _run(sources, output, asked, keep, share):
    """`asked`: what `make_tokenizers` takes. `share`: (index, count), which of the shards are made here."""
    targets = [f"{output}-{i:05d}-of-{len(sources):05d}.tfrecord" for i in range(len(sources))]
    sources, targets = sources[share[0] :: share[1]], targets[share[0] :: share[1]]
    todo = [(source, target) for source, target in zip(sources, targets, strict=True) if not storage.exists(target)]
    for target in set(targets) - {target for _, target in todo}:
        if not storage.exists(shard_index.path_of(target)):  # killed between the two, before they were in this order
            shard_index.write(target, records.index(target))
    if len(todo) < len(sources):
        print(f"already there: {len(sources) - len(todo)} of {counted(len(sources), 'shard')}")
    if not todo:
        return
    tokenizers = make_tokenizers(*asked)
    total = sum(len(records.scan(source)[0]) for source, _ in todo)
    with tqdm.tqdm(total=total, desc="tokenizing", unit=" records") as bar:
        for source, target in todo:
            convert(source, target, tokenizers, keep, bar)
    left = [f"{name}s stay as they are (no --{flag})" for name, flag in (("image", "vqgan"), ("text", "vocabulary"))
            if name not in tokenizers]  # fmt: skip
    cut = tokenizers["text"][2].num_cut if "text" in tokenizers else 0
    print(f"{output}: {counted(total, 'record')} in {counted(len(todo), 'shard')}; {counted(cut, 'text')} cut"
          + "".join(f"; {what}" for what in left))  # fmt: skip


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards to read, comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "Folder and first part of the names of the new shards.", required=True)
    flags.DEFINE_string("vqgan", "", "Folder of the image tokenizer; empty: pictures stay as they are.")
    flags.DEFINE_string("vocabulary", "", "SentencePiece model (.model); empty: texts stay as they are.")
    flags.DEFINE_integer("num_text_tokens", 64, "Text tokens with EOS; longer texts are cut.", lower_bound=2)
    flags.DEFINE_boolean("keep", False, "Keep `image` and `text` beside their ids.")
    flags.DEFINE_integer(
        "num_crops", 1, "Crops of each picture: the centre, as in training, and others.", lower_bound=1
    )
    flags.DEFINE_boolean("flip", False, "Each crop also mirrored (wrong where texts say left or right).")
    flags.DEFINE_string("backend", "auto", "Where the image tokenizer runs, as in training.")


def main(_):
    flag = flags.FLAGS
    run(flag.input, flag.output, flag.vqgan, flag.vocabulary, flag.num_text_tokens, flag.keep,
        num_crops=flag.num_crops, flip=flag.flip, backend=flag.backend)  # fmt: skip


if __name__ == "__main__":
    define_flags()
    run_main(main)
