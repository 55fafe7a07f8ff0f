"""How well a model does on Scenes: exact shares, by number of objects and by attribute, CIDEr, and cycles that hold.

Everything is counted from scenes that were read out of pictures and captions; None is a caption that tells none.

Shapes: B scenes.
"""

import numpy as np

from itit.data import scenes
from itit.scores import captions
from itit.scores.scenes import exact, exact_by_objects, right_by_attribute

NUM_REFERENCES = 5  # captions of a scene that CIDEr compares with, as COCO has


def shares(found, truth):
    """Everything that is counted of one direction: dict of `exact`, `by_objects`, `by_attribute`. Lists of B scenes."""
    by_objects, by_attribute = exact_by_objects(found, truth), right_by_attribute(found, truth)
    return {
        "exact": round(exact(found, truth), 4),
        "by_objects": {str(number): round(share, 4) for number, share in by_objects.items()},
        "by_attribute": {name: round(share, 4) for name, share in by_attribute.items()},
    }


def cider(told, truth, seed=0):
    """CIDEr times 100 of captions, list of B str, against captions of the same scenes that are drawn here."""
    rng = np.random.default_rng(seed)
    references = [[scenes.describe(scene, rng) for _ in range(NUM_REFERENCES)] for scene in truth]
    return round(100 * captions.quick(told, references), 2)


def intact(stages, truth):
    """Share of scenes that are as they were, one a turn. `stages`: for each turn the list of B scenes that it made."""
    return [round(exact(stage, truth), 4) for stage in stages]
