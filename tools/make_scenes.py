"""`python -m tools.make_scenes --output=DIR`: writes Scenes as TFRecord shards, with a contact sheet `preview.png`.

Splits, each drawn by itself (see scene_splits.py): few `paired`, many unpaired `images` and `texts`, and pairs to test
on: `seen`, `unpaired` and `never`, by which data show their objects. Where asked for, `extra` pairs, a share of them
with the caption of another scene.

A record depends on --seed, its split and its number: fewer records are the first ones of more.
"""

import io

from absl import flags
from PIL import Image

from itit import sheets, storage
from itit.data import scenes
from itit.flags import run_main
from itit.sheets import Panel, Section, in_rows
from tools.data import splits
from tools.data.scene_splits import PAIR, SPLITS, draw

PREVIEWS, COLUMNS = 12, 6  # pairs of a split on the contact sheet


def examples(split, count, seed, **how):
    """Yields `count` dicts with `key` and those of `image` (PNG) and `text` that the split has, the same each time.

    `how`: further arguments of `scene_splits.draw`.
    """
    for number, (picture, caption) in enumerate(draw(split, count, seed, **how)):
        example = {"key": f"{split}/{number}"}
        if picture is not None:
            data = io.BytesIO()
            Image.fromarray(picture).save(data, "PNG")
            example["image"] = data.getvalue()
        if caption is not None:
            example["text"] = caption
        yield example


def write(output, counts, seed, **how):
    """Writes the splits named in `counts` (split -> records) and, of pairs, the contact sheet into the new folder
    `output`.

    `how`: further arguments of `scene_splits.draw`.
    """
    with splits.new_folder(output) as folder:
        previews = []
        for split, count in counts.items():
            if count:
                splits.write_split(folder, split, examples(split, count, seed, **how), count)
                print(f"{split}: {count} records of {' and '.join(SPLITS[split][0])}")
            if count and SPLITS[split][0] == PAIR:
                panels = list(map(Panel, *zip(*draw(split, min(count, PREVIEWS), seed, **how), strict=True)))
                previews.append(Section(split, in_rows(panels, COLUMNS)))
        if previews:
            sheets.write(storage.join(folder, "preview.png"), previews)


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
