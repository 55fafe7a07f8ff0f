"""The splits of Scenes: what each shows, and its records, drawn.

`paired`: few pairs. `images`, `texts`: unpaired data. To test on: `seen` (new scenes of objects that the pairs show),
`unpaired` (with an object that only unpaired data show), `never` (with one that no training data show). `extra`: pairs
of all that unpaired data show, for studies of data added as pairs.

Shapes: S = 64, side of a picture.
"""

import numpy as np

from itit.data import scenes

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


def draw(split, count, seed, jitter=False, wrong_captions=0.0):
    """Yields `count` times (picture, uint8 [S, S, 3], caption), None for what the split has not, the same each time.

    A draw depends on (seed, split) and those before it: fewer are the first ones of more.

    Args:
      jitter: move every object by up to a pixel, which captions do not tell.
      wrong_captions: share of `extra` pairs whose caption describes another scene.
    """
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    features, groups = SPLITS[split]
    for _ in range(count):
        shown = said = scenes.sample(rng, groups)
        if split == "extra" and rng.random() < wrong_captions:
            while said == shown:
                said = scenes.sample(rng, groups)
        picture = scenes.render(shown, rng if jitter else None) if "image" in features else None
        yield picture, scenes.describe(said, rng) if "text" in features else None
