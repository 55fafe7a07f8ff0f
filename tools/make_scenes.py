"""`python -m tools.make_scenes --output=DIR`: writes Scenes as TFRecord shards, with a contact sheet `preview.png`.

Splits, each drawn by itself: few `paired`, many unpaired `images` and `texts`, and pairs to test on: `seen` (new scenes
of objects that the pairs show), `unpaired` (with an object that only unpaired data show), `never` (with one that no
training data show). Where asked for, `extra` pairs: of all that unpaired data show, a share with the caption of another
scene.

A record depends on --seed, its split and its number: fewer records are the first ones of more.
"""

import io

import numpy as np
from absl import flags
from PIL import Image

from itit import storage
from itit.data import scenes
from itit.flags import run_main
from tools import splits

PAIR, KNOWN = ("image", "text"), ("seen", "unpaired")
# Split -> (features, groups of its scenes). The place in this table is part of the seed: new splits go to its end.
SPLITS = {
    "paired": (PAIR, ("seen",)),
    "images": (("image",), KNOWN),
    "texts": (("text",), KNOWN),
    "never": (PAIR, ("never",)),
    "unpaired": (PAIR, ("unpaired",)),
    "seen": (PAIR, ("seen",)),
    "extra": (PAIR, KNOWN),
}
PREVIEWS = 12  # pairs of a split on the contact sheet


def examples(split, count, seed, jitter=False, wrong_captions=0.0):
    """Yields `count` dicts with `key` and those of `image` (PNG) and `text` that the split has, the same each time.

    `jitter` moves every object by up to a pixel, which captions do not tell. `wrong_captions`: share of `extra` pairs
    whose caption describes another scene.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    features, groups = SPLITS[split]
    for number in range(count):
        shown = said = scenes.sample(rng, groups)
        if split == "extra" and rng.random() < wrong_captions:
            while said == shown:
                said = scenes.sample(rng, groups)
        example = {"key": f"{split}/{number}"}
        if "image" in features:
            data = io.BytesIO()
            Image.fromarray(scenes.render(shown, rng if jitter else None)).save(data, "PNG")
            example["image"] = data.getvalue()
        if "text" in features:
            example["text"] = scenes.describe(said, rng)
        yield example


def write(output, counts, seed, **how):
    """Writes the splits named in `counts` (split -> records) and, of pairs, the contact sheet into the new folder
    `output`.

    `how`: arguments of `examples`.
    """
    with splits.new_folder(output) as folder:
        previews = []
        for split, count in counts.items():
            if count:
                splits.write_split(folder, split, examples(split, count, seed, **how), count)
                print(f"{split}: {count} records of {' and '.join(SPLITS[split][0])}")
            if count and SPLITS[split][0] == PAIR:
                tiles = [(Image.open(io.BytesIO(e["image"])), e["text"])
                         for e in examples(split, min(count, PREVIEWS), seed, **how)]  # fmt: skip
                previews.append((split, tiles))
        if previews:
            splits.write_contact_sheet(storage.join(folder, "preview.png"), previews)


def define_flags():
    flags.DEFINE_string("output", None, "New folder for the shards.", required=True)
    flags.DEFINE_integer("num_pairs", 2000, "Pairs of a picture and a caption.", lower_bound=0)
    flags.DEFINE_integer("num_images", 20000, "Unpaired pictures.", lower_bound=0)
    flags.DEFINE_integer("num_texts", 20000, "Unpaired captions.", lower_bound=0)
    flags.DEFINE_integer("num_test", 500, "Pairs of each of the three test splits.", lower_bound=0)
    flags.DEFINE_integer("num_extra", 0, "Pairs of the split extra.", lower_bound=0)
    flags.DEFINE_float("wrong_captions", 0.0, "Share of these whose caption describes another scene.", 0.0, 1.0)
    flags.DEFINE_boolean("jitter", False, "Move objects by up to a pixel, which captions do not tell.")
    flags.DEFINE_integer("seed", 0, "Seed of every draw.", lower_bound=0)


def main(_):
    flag = flags.FLAGS
    counts = {"paired": flag.num_pairs, "images": flag.num_images, "texts": flag.num_texts, "extra": flag.num_extra}
    counts |= dict.fromkeys(scenes.GROUPS, flag.num_test)
    if not any(counts.values()):
        raise ValueError("--num_pairs=0 and all others are 0, too: nothing to write")
    write(flag.output, counts, flag.seed, jitter=flag.jitter, wrong_captions=flag.wrong_captions)


if __name__ == "__main__":
    define_flags()
    run_main(main)
