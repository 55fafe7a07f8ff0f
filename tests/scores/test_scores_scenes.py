"""Scores of Scenes against counts by hand, one scene at a time."""

import numpy as np
import pytest

from itit.data import scenes
from itit.scores.scenes import exact, exact_by_objects, right_by_attribute


def changed(thing, name, rng):
    values = {"shape": scenes.SHAPES, "colour": tuple(scenes.COLOURS), "size": tuple(scenes.SIZES)}[name]
    return thing._replace(**{name: rng.choice([value for value in values if value != getattr(thing, name)])})


def test_exact_shares():
    rng = np.random.default_rng()
    truth = [scenes.sample(rng, scenes.GROUPS) for _ in range(90)]
    kinds = rng.choice(["right", "none", "one wrong"], len(truth))
    found = []
    for scene, kind in zip(truth, kinds, strict=True):
        wrong = scenes.make_scene([changed(scene[0], rng.choice(["shape", "colour", "size"]), rng), *scene[1:]])
        found.append({"right": scene, "none": None, "one wrong": wrong}[kind])
    assert exact(found, truth) == pytest.approx(np.mean(kinds == "right"))
    counts = np.array([len(scene) for scene in truth])
    by_objects = exact_by_objects(found, truth)
    assert list(by_objects) == sorted(set(counts.tolist()))
    for k, share in by_objects.items():
        assert share == pytest.approx(np.mean(kinds[counts == k] == "right"))


def test_attributes_are_looked_for_at_their_place():
    red = scenes.Object("circle", "red", "small", "top left")
    blue = scenes.Object("cross", "blue", "large", "bottom right")
    moved = blue._replace(place="bottom left")
    found = [(red._replace(colour="green", size="large"), blue), (moved,), None, (red, moved)]
    truth = [(red, blue), (blue,), (red,), (red,)]
    # Five true objects: two of the first scene, then blue, red, red, of which the last alone is found.
    assert right_by_attribute(found, truth) == pytest.approx({"shape": 3 / 5, "colour": 2 / 5, "size": 2 / 5,
                                                              "place": 3 / 5})  # fmt: skip
