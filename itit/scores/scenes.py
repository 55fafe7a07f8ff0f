"""How many scenes are exactly right: told of pictures, or drawn from texts (see data/scenes.py).

A scene is a tuple of `Object`s; one that was found may be None, where a caption tells none.
"""

import numpy as np

from itit.data.scenes import Object


def exact(found, truth):
    """Share of scenes that are found with every object and every attribute, and nothing else. Lists of scenes."""
    return float(np.mean([a == b for a, b in zip(found, truth, strict=True)]))


def exact_by_objects(found, truth):
    """Number of objects -> `exact` of the scenes with so many."""
    pairs = list(zip(found, truth, strict=True))
    return {k: exact(*zip(*(p for p in pairs if len(p[1]) == k), strict=True)) for k in sorted(set(map(len, truth)))}


def right_by_attribute(found, truth):
    """Attribute -> share of the true objects that are found with it, each looked for at its place.

    For "place" it is enough that some object is found there.
    """
    right = {name: [] for name in Object._fields}
    for scene, true_scene in zip(found, truth, strict=True):
        there = {thing.place: thing for thing in scene or ()}
        for thing in true_scene:
            for name, values in right.items():
                values.append(thing.place in there and getattr(there[thing.place], name) == getattr(thing, name))
    return {name: float(np.mean(values)) for name, values in right.items()}
