"""`python -m tools.make_scenes --output=DIR`: writes Scenes as TFRecord shards, with a contact sheet `preview.png`.

Splits: few `paired`, many unpaired `images` and `texts` (drawn apart from each other and from the pairs), and `test`,
pairs of scenes with at least one object that no other split shows.
"""

import io

import numpy as np
from absl import flags
from PIL import Image

from itit import storage
from itit.data import scenes
from itit.flags import run_main
from tools import splits

SPLITS = {"paired": ("image", "text"), "images": ("image",), "texts": ("text",), "test": ("image", "text")}
PREVIEWS = 12  # pairs of a split on the contact sheet


def examples(split, count, seed, jitter=False):
    """Yields `count` dicts with `key` and those of `image` (PNG) and `text` that the split has, the same each time.

    `jitter` moves every object by up to a pixel, which captions do not tell.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    for number in range(count):
        scene = scenes.sample(rng, held_out_scene=split == "test")
        example = {"key": f"{split}/{number}"}
        if "image" in SPLITS[split]:
            data = io.BytesIO()
            Image.fromarray(scenes.render(scene, rng if jitter else None)).save(data, "PNG")
            example["image"] = data.getvalue()
        if "text" in SPLITS[split]:
            example["text"] = scenes.describe(scene, rng)
        yield example


def write(output, counts, seed, jitter=False):
    """Writes the splits named in `counts` (split -> records) and the contact sheet into the new folder `output`."""
    with splits.new_folder(output) as folder:
        previews = []
        for split, count in counts.items():
            if count:
                splits.write_split(folder, split, examples(split, count, seed, jitter), count)
                print(f"{split}: {count} records of {' and '.join(SPLITS[split])}")
            if SPLITS[split] == ("image", "text"):
                tiles = [(Image.open(io.BytesIO(e["image"])), e["text"])
                         for e in examples(split, min(count, PREVIEWS), seed, jitter)]  # fmt: skip
                previews.append((split, tiles))
        splits.write_contact_sheet(storage.join(folder, "preview.png"), previews)


def define_flags():
    flags.DEFINE_string("output", None, "New folder for the shards.", required=True)
    flags.DEFINE_integer("num_pairs", 2000, "Pairs of a picture and a caption.", lower_bound=1)
    flags.DEFINE_integer("num_images", 20000, "Unpaired pictures.", lower_bound=0)
    flags.DEFINE_integer("num_texts", 20000, "Unpaired captions.", lower_bound=0)
    flags.DEFINE_integer("num_test", 500, "Pairs with held-out objects.", lower_bound=0)
    flags.DEFINE_boolean("jitter", False, "Move objects by up to a pixel, which captions do not tell.")
    flags.DEFINE_integer("seed", 0, "Seed of every draw.", lower_bound=0)


def main(_):
    flag = flags.FLAGS
    counts = dict(paired=flag.num_pairs, images=flag.num_images, texts=flag.num_texts, test=flag.num_test)
    write(flag.output, counts, flag.seed, flag.jitter)


if __name__ == "__main__":
    define_flags()
    run_main(main)
