"""`python -m tools.tokenize --input=SHARDS --output=DIR/PREFIX --vqgan=DIR --vocabulary=FILE`: ready ids from raw data.

Writes the same records in the same order, with `image_ids` for `image` (--vqgan) and `text_ids` for `text`
(--vocabulary); shard i of k becomes PREFIX-0000i-of-0000k.tfrecord. A finished shard is skipped on a rerun, an
unfinished one is never visible. PREFIX-settings.json holds what the shards were made with; a rerun must be given the
same.

Run it with -m: as a script it would stand in for Python's own module `tokenize`.

Shapes: B records of a batch, S picture side, N image tokens, L text tokens.
"""

import google_crc32c
import numpy as np
import torch
import tqdm
from absl import flags

from itit import config as config_lib
from itit import storage
from itit.data import images, records
from itit.flags import run_main
from itit.weights import load_vqgan
from tools.splits import settle

BATCH_SIZE = 64


class ImageTokenizer:
    """Encoded pictures -> ids, by the tokenizer in `folder`. Raises ValueError where it cannot be loaded."""

    def __init__(self, folder):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_vqgan(folder).to(self._device)

    def decode(self, data):
        """bytes of a picture -> uint8 [S, S, 3]."""
        return images.decode(data, self._model.config.image_size, config_lib.DataConfig().max_image_pixels)

    @torch.no_grad()
    def __call__(self, pixels):
        """list of B uint8 [S, S, 3] -> int64 [B, N]."""
        return self._model.tokenize(torch.from_numpy(np.stack(pixels)).to(self._device)).cpu().numpy()


def make_tokenizers(vqgan, vocabulary, num_text_tokens):
    """{feature to read: (feature to write, decoder of its bytes, tokenizer of a list of decoded values)}."""
    if not vqgan and not vocabulary:
        raise ValueError("--vqgan and --vocabulary are both missing: give one or both")
    tokenizers = {}
    if vqgan:
        image_tokenizer = ImageTokenizer(vqgan)
        tokenizers["image"] = ("image_ids", image_tokenizer.decode, image_tokenizer)
    if vocabulary:
        # TensorFlow is slow to load and not on every machine; pictures do without.
        from itit.data.preprocess import TextTokenizer

        tokenizers["text"] = ("text_ids", bytes.decode, TextTokenizer(vocabulary, num_text_tokens))
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
                    for (features, _), ids in zip(rows, tokenizer([value for _, value in rows]), strict=True):
                        features[written] = ids
                        if not keep:
                            del features[name]
            for features, _ in batch:
                writer.write(records.encode_example(features))
            bar.update(len(batch))


def _read(path, offset, length, tokenizers):
    """(features of a record as they are, {feature to tokenize: decoded value})."""
    payload = records.read(path, offset, length)
    try:
        features = records.decode_example(payload)
        for name, value in features.items():
            if isinstance(value, list) and len(value) != 1:
                raise ValueError(f"{name!r} must be one string of bytes")
        values = {name: decode(features[name][0]) for name, (_, decode, _) in tokenizers.items() if name in features}
    except ValueError as error:
        raise records.BadRecord(path, offset, error) from None
    if not values:
        raise records.BadRecord(path, offset, f"holds no {' or '.join(map(repr, tokenizers))}")
    # A feature is read as a list of byte strings and written as one string.
    return {name: value[0] if isinstance(value, list) else value for name, value in features.items()}, values


def run(pattern, output, vqgan, vocabulary, num_text_tokens, keep):
    """Converts every shard that is not yet there.

    Raises ValueError where `output` was begun with other settings.
    """
    sources = storage.glob(pattern)
    settings = {
        "input": sources, "keep": keep, "num_text_tokens": num_text_tokens,
        "vqgan": vqgan and _checksum(storage.join(vqgan, "model.safetensors")),
        "vocabulary": vocabulary and _checksum(vocabulary),
    }  # fmt: skip
    settle(output + "-settings.json", settings)
    targets = [f"{output}-{i:05d}-of-{len(sources):05d}.tfrecord" for i in range(len(sources))]
    todo = [(source, target) for source, target in zip(sources, targets, strict=True) if not storage.exists(target)]
    if len(todo) < len(sources):
        print(f"{len(sources) - len(todo)} of {len(sources)} shards are already there")
    if not todo:
        return
    tokenizers = make_tokenizers(vqgan, vocabulary, num_text_tokens)
    total = sum(len(records.scan(source)[0]) for source, _ in todo)
    with tqdm.tqdm(total=total, desc="tokenizing", unit=" records") as bar:
        for source, target in todo:
            convert(source, target, tokenizers, keep, bar)
    cut = tokenizers["text"][2].num_cut if "text" in tokenizers else 0
    print(f"{output}: {total} records in {len(todo)} shards; {cut} texts cut to {num_text_tokens} tokens")


def _checksum(path):
    if not storage.exists(path):
        raise ValueError(f"{path}: no such file")
    with storage.open(path) as file:
        return google_crc32c.value(file.read())


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards to read, comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "Folder and first part of the names of the new shards.", required=True)
    flags.DEFINE_string("vqgan", "", "Folder of the image tokenizer; empty: pictures stay as they are.")
    flags.DEFINE_string("vocabulary", "", "SentencePiece model (.model); empty: texts stay as they are.")
    flags.DEFINE_integer("num_text_tokens", 64, "Text tokens with EOS; longer texts are cut.", lower_bound=2)
    flags.DEFINE_boolean("keep", False, "Keep `image` and `text` beside their ids.")


def main(_):
    flag = flags.FLAGS
    run(flag.input, flag.output, flag.vqgan, flag.vocabulary, flag.num_text_tokens, flag.keep)


if __name__ == "__main__":
    define_flags()
    run_main(main)
