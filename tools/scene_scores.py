"""How well a model does on Scenes: exact shares, by number of objects and by attribute, CIDEr, and cycles that hold.

Everything is counted from scenes that were read out of pictures and captions. None is a caption that says no scene.

Shapes: B scenes.
"""

import numpy as np

from itit.data import scenes
from itit.scores import captions
from tools.alignment import exact_shares

ATTRIBUTES = ("shape", "colour", "size")
NUM_REFERENCES = 5  # captions of a scene that CIDEr compares with, as COCO has


def by_attribute(found, truth):
    """Name -> share of places that are right in it, over all places that hold an object in one scene or the other.

    `place` is right where both hold one; `shape`, `colour`, `size` where both hold one and agree. Lists of B scenes.
    """
    right = dict.fromkeys((*ATTRIBUTES, "place"), 0)
    total = 0
    for one, two in zip(found, truth, strict=True):
        one, two = ({thing.place: thing for thing in scene or ()} for scene in (one, two))
        total += len(one.keys() | two.keys())
        for place in one.keys() & two.keys():
            right["place"] += 1
            for name in ATTRIBUTES:
                right[name] += getattr(one[place], name) == getattr(two[place], name)
    return {name: round(count / total, 4) for name, count in right.items()}


def shares(found, truth):
    """Everything that is counted of one direction: dict of `exact`, `by_objects`, `by_attribute`. Lists of B scenes."""
    exact, by_objects = exact_shares(found, truth)
    return {"exact": exact, "by_objects": by_objects, "by_attribute": by_attribute(found, truth)}


def cider(told, truth, seed=0):
    """CIDEr times 100 of captions, list of B str, against captions of the same scenes that are drawn here."""
    rng = np.random.default_rng(seed)
    references = [[scenes.describe(scene, rng) for _ in range(NUM_REFERENCES)] for scene in truth]
    return round(100 * captions.quick(told, references), 2)


def intact(stages, truth):
    """Share of scenes that are as they were, one a turn. `stages`: for each turn the list of B scenes that it made."""
    return [round(float(np.mean([a == b for a, b in zip(stage, truth, strict=True)])), 4) for stage in stages]
