"""`python -m tools.scene_ids --splits=paired:300 --output=DIR --vqgan=DIR --vocabulary=FILE`: Scenes as ready ids.

Writes DIR/SPLIT-00000-of-00001.tfrecord for each split, with the ids that `make_scenes` and then `tokenize` make, but
without shards in between and without TensorFlow. A finished split is skipped on a rerun, an unfinished one is never
visible. DIR/SPLIT-settings.json holds what it was made with; a rerun must be given the same, and so must a training.

Shapes: B records of a batch, S side of a picture, N image tokens, L text tokens.
"""

import itertools

import numpy as np
import tqdm
from absl import flags

from itit import storage
from itit.backends.connect import connect
from itit.checkpoint.weights import load_vqgan
from itit.config import TrainConfig
from itit.data import made_with, records, shard_index
from itit.data.text import Tokenizer
from itit.flags import run_main
from tools.data.scene_splits import SPLITS, draw
from tools.data.splits import settle
from tools.data.tokenizing import image_ids

BATCH_SIZE = 64


def read_splits(text):
    """ "paired:300,images:20000" -> split -> records. Raises ValueError, one line."""
    found = {}
    for part in text.split(","):
        name, _, count = part.partition(":")
        if name not in SPLITS or not count.isdigit() or int(count) < 1 or name in found:
            raise ValueError(f"--splits: {part!r}: must be SPLIT:RECORDS, each split once, of {', '.join(SPLITS)}")
        found[name] = int(count)
    return found


def write(path, split, drawn, count, to_image_ids, to_text_ids):
    """Writes one split.

    Args:
      drawn: of `scene_splits.draw`, `count` of them.
      to_image_ids: uint8 [B, S, S, 3] -> int64 [B, N].
      to_text_ids: list of B str -> int64 [B, L].
    """
    numbers = itertools.count()
    with records.RecordWriter(path) as writer, tqdm.tqdm(total=count, desc=split, unit=" records", leave=False) as bar:
        while batch := list(itertools.islice(drawn, BATCH_SIZE)):
            pictures, texts = zip(*batch, strict=True)
            features = {}
            if "image" in SPLITS[split][0]:
                features["image_ids"] = to_image_ids(np.stack(pictures))
            if "text" in SPLITS[split][0]:
                features["text_ids"] = to_text_ids(list(texts))
            for row in range(len(batch)):
                example = {"key": f"{split}/{next(numbers)}"} | {name: ids[row] for name, ids in features.items()}
                writer.write(records.encode_example(example))
            bar.update(len(batch))
        shard_index.write(path, writer.spans)  # before the shard appears, which is never without


def define_flags():
    flags.DEFINE_string("splits", None, "SPLIT:RECORDS, separated by commas.", required=True)
    flags.DEFINE_string("output", None, "Folder.", required=True)
    flags.DEFINE_string("vqgan", None, "Folder of the image tokenizer.", required=True)
    flags.DEFINE_string("vocabulary", None, "SentencePiece model (.model).", required=True)
    flags.DEFINE_integer("num_text_tokens", 32, "Text tokens with EOS.", lower_bound=2)
    flags.DEFINE_integer("seed", 0, "Seed of every draw.", lower_bound=0)
    flags.DEFINE_float("wrong_captions", 0.0, "Share of extra pairs with the caption of another scene.", 0.0, 1.0)
    flags.DEFINE_enum("backend", "auto", ["auto", "cpu", "cuda"], "Where the image tokenizer runs.")


def main(_):
    flag = flags.FLAGS
    backend, vocabulary = connect(TrainConfig(backend=flag.backend)), Tokenizer(flag.vocabulary)
    vqgan = backend.adopt(load_vqgan(flag.vqgan).requires_grad_(False))

    def to_image_ids(pictures):
        batch = backend.to_device({"images": pictures}, whole=True)
        return backend.sampler(image_ids, vqgan, batch["images"]).cpu().numpy()

    given = {name: getattr(flag, name) for name in ("num_text_tokens", "seed", "wrong_captions")}
    for name in made_with.PARTS.values():
        given[name] = made_with.checksum(made_with.weights_of(name, getattr(flag, name)))
    for split, count in read_splits(flag.splits).items():
        prefix = storage.join(flag.output, split)
        path, record = f"{prefix}-00000-of-00001.tfrecord", made_with.path_of(prefix)
        there = storage.exists(path)
        if not there or storage.exists(record):  # earlier versions left no record
            settle(record, {"splits": f"{split}:{count}"} | given, made=there)
        if there:
            continue
        drawn = draw(split, count, flag.seed, wrong_captions=flag.wrong_captions)
        write(path, split, drawn, count, to_image_ids, lambda texts: vocabulary.encode(texts, flag.num_text_tokens))
        print(f"{path}: {count} records")


if __name__ == "__main__":
    define_flags()
    run_main(main)
