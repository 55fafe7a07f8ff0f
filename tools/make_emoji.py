"""`python -m tools.make_emoji --data=DIR --output=DIR`: emoji and COCO captions as TFRecord shards for training.

DIR holds `emoji/captions.jsonl` and `emoji/images/`, as `tools.fetch_emoji` makes them, and perhaps
`coco/captions_val2017.json`. Splits: `test` has the held-out combinations of skin tone and role, and no other split
shows their pictures or names; of the rest, `paired` are a few pairs, and each other emoji gives either its picture to
`images` or its name to `texts`, so that no pair is in both. `coco` holds the COCO captions, further unpaired texts.
Pictures stay the bytes that they are.
"""

import io
import json
import zlib

import numpy as np
from absl import flags
from PIL import Image

from itit import sheets, storage
from itit.flags import run_main
from itit.sheets import Panel, Section, in_rows
from tools.data import splits
from tools.data.emoji import TONES, read_emoji, role_and_tone

FEATURES = {"paired": ("image", "text"), "images": ("image",), "texts": ("text",), "test": ("image", "text"),
            "coco": ("text",)}  # fmt: skip
PREVIEWS, COLUMNS = 12, 6  # pairs of a split on the contact sheet


def _hash(text):
    return zlib.crc32(text.encode())


def held_out_names(names):
    """The names kept for the test: of each role that comes in all five tones one, chosen by the role's CRC32."""
    tones = {}
    for name in names:
        role, tone = role_and_tone(name)
        tones.setdefault(role, {})[tone] = name
    return {found[TONES[_hash(role) % len(TONES)]] for role, found in tones.items()
            if set(TONES) <= set(found)}  # fmt: skip


def split_emoji(emoji, num_pairs, seed):
    """Deals emoji out. The same for the same seed, and the test split the same for every seed.

    Args:
      emoji: list of dicts with a unique `caption`.
      num_pairs: how many become pairs; what is left is halved between `images` and `texts`.

    Returns:
      split name -> list of those dicts; every emoji is in exactly one split. All are shuffled.
    """
    names = held_out_names(item["caption"] for item in emoji)
    rest = [item for item in emoji if item["caption"] not in names]
    if num_pairs > len(rest):
        raise ValueError(f"--num_pairs={num_pairs}: must be at most {len(rest)}, the emoji outside the test split")
    order = np.random.default_rng(seed).permutation(len(rest))
    bounds = (num_pairs, num_pairs + (len(rest) - num_pairs) // 2)
    dealt = [[rest[i] for i in part] for part in np.split(order, bounds)]
    test = sorted((item for item in emoji if item["caption"] in names), key=lambda item: _hash(item["caption"]))
    return dict(zip(("paired", "images", "texts"), dealt, strict=True)) | {"test": test}


def read_coco(path):
    """Captions of a COCO json file, as examples: spaces trimmed, each text once."""
    with storage.open(path) as file:
        annotations = json.load(file)["annotations"]
    texts = dict.fromkeys(" ".join(item["caption"].split()) for item in annotations)
    return [{"key": f"coco/{number}", "text": text} for number, text in enumerate(filter(None, texts))]


def examples(folder, emoji, features):
    """Yields dicts with `key` and those of `image` (its bytes) and `text` that are in `features`."""
    for item in emoji:
        example = {"key": item["file"]}
        if "image" in features:
            with storage.open(storage.join(folder, item["file"])) as file:
                example["image"] = file.read()
        if "text" in features:
            example["text"] = item["caption"]
        yield example


def write(data, output, num_pairs, seed):
    """Writes all splits and `preview.png` into the new folder `output`. Raises ValueError where there are no emoji."""
    folder, coco = storage.join(data, "emoji"), storage.join(data, "coco", "captions_val2017.json")
    if not storage.exists(storage.join(folder, "captions.jsonl")):
        raise ValueError(f"--data={data}: {folder}/captions.jsonl is not there; python -m tools.fetch_emoji "
                         f"--output={folder} makes it")  # fmt: skip
    dealt = split_emoji(read_emoji(folder), num_pairs, seed)
    with splits.new_folder(output) as staging:
        previews = []
        for split, emoji in dealt.items():
            splits.write_split(staging, split, examples(folder, emoji, FEATURES[split]), len(emoji))
            print(f"{split}: {len(emoji)} records of {' and '.join(FEATURES[split])}")
            if FEATURES[split] == ("image", "text"):
                panels = [Panel(Image.open(io.BytesIO(example["image"])), example["text"])
                          for example in examples(folder, emoji[:PREVIEWS], FEATURES[split])]  # fmt: skip
                previews.append(Section(split, in_rows(panels, COLUMNS)))
        if storage.exists(coco):
            captions = read_coco(coco)
            splits.write_split(staging, "coco", captions, len(captions))
            print(f"coco: {len(captions)} records of text")
        else:
            print(f"coco: left out, {coco} is not there")
        sheets.write(storage.join(staging, "preview.png"), previews)


def define_flags():
    flags.DEFINE_string("data", None, "Folder with emoji/ and perhaps coco/.", required=True)
    flags.DEFINE_string("output", None, "New folder for the shards.", required=True)
    flags.DEFINE_integer("num_pairs", 400, "Pairs of a picture and its name.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the deal.", lower_bound=0)


def main(_):
    write(flags.FLAGS.data, flags.FLAGS.output, flags.FLAGS.num_pairs, flags.FLAGS.seed)


if __name__ == "__main__":
    define_flags()
    run_main(main)
