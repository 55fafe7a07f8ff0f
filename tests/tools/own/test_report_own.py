"""tools.report_own: the scale beside the scores, and what the curve of the loss says. The page: test_start.py."""

import numpy as np
import pytest

from itit.scores import captions
from tools import report_own


def test_the_scale_is_of_captions_that_fit_other_pictures():
    rng = np.random.default_rng()
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(40)]
    references = [[" ".join(rng.choice(words, 6)) for _ in range(2)] for _ in range(12)]
    found = report_own.by_chance(references)
    expected = captions.score([references[(n + 1) % 12][0] for n in range(12)], references)
    assert found == expected
    assert report_own.by_chance(references[:1]) is None
    assert found["CIDEr"] < captions.score([texts[0] for texts in references], references)["CIDEr"]


@pytest.mark.parametrize(
    "curve, said",
    [
        (((), ()), ""),
        (((0,), (5.0,)), ""),
        (
            ((0, 10, 20, 30), (5.0, 2.5, 2.25, 3.0)),
            "Loss on held-out captions: 2.25 at step 20, its lowest, and 3.00 at the end.",
        ),
        (((0, 10), (5.0, 2.5)), "Loss on held-out captions: 2.50 at step 10, its lowest, the end."),
    ],
)
def test_what_the_loss_says(curve, said):
    assert report_own.best(curve) == said
