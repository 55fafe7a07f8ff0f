"""tools.scoring.scene_scores: shares by hand, CIDEr of captions of the right and of other scenes."""

import numpy as np

from itit.data import scenes
from tools.scoring import scene_scores


def test_shares():
    one = scenes.Object("circle", "red", "small", "top left")
    two = scenes.Object("cross", "blue", "large", "bottom left")
    other = one._replace(colour="blue")
    truth = [scenes.make_scene(t) for t in ([one], [one, two], [two])]
    found = scene_scores.shares([truth[0], scenes.make_scene([other, two]), None], truth)
    assert found["exact"] == 0.3333 and found["by_objects"] == {"1": 0.5, "2": 0.0}
    assert found["by_attribute"] == {"shape": 0.75, "colour": 0.5, "size": 0.75, "place": 0.75}
    stages = [[truth[0], truth[1], None], [None, None, None]]
    assert scene_scores.intact(stages, truth) == [0.6667, 0.0]


def test_cider_tells_captions_of_other_scenes():
    rng = np.random.default_rng()
    truth = [scenes.sample(rng, scenes.GROUPS) for _ in range(80)]
    right = [scenes.describe(scene, rng) for scene in truth]
    shuffled = right[1:] + right[:1]
    high, low = scene_scores.cider(right, truth), scene_scores.cider(shuffled, truth)
    assert high > 1.5 * low > 0 and scene_scores.cider(right, truth) == high
    assert scene_scores.cider([""] * 80, truth) == 0
