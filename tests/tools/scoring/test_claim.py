"""tools.scoring.claim: where the cycles join, what was right before, and the picture."""

import numpy as np
import pytest

from itit import config as config_lib
from tests.helpers.small import small
from tools.scoring import claim


def test_the_cycles_join_with_the_first():
    base = small(t2i2t_batch=0, t2i2t="off", i2t2i_batch=0, i2t2i="off", num_steps=100, lr_warmup_steps=0)
    assert claim.join_step(base) is None
    one = config_lib.replace(base, i2t2i_batch=2, i2t2i="full", i2t2i_warmup_steps=30, t2i2t_warmup_steps=3)
    assert claim.join_step(one) == 30
    assert claim.join_step(config_lib.replace(one, t2i2t_batch=2, t2i2t="half")) == 3
    assert claim.join_step(config_lib.replace(one, i2t2i_warmup_steps=100)) is None


def test_scores_before_are_the_last_that_both_have():
    keys = list(claim.SCORES.values())
    curves = {keys[0]: ([0, 10, 20, 30], [0.0, 0.1, 0.2, 0.3]), keys[1]: ([0, 10, 30], [0.0, 0.5, 0.6])}
    assert claim.before_cycles(curves, 29) == {"step": 10, "caption_score": 0.1, "picture_score": 0.5}
    assert claim.before_cycles(curves, 30)["picture_score"] == 0.6
    assert claim.before_cycles(curves, None) is None and claim.before_cycles({}, 10) is None


@pytest.mark.parametrize("joined", [None, 20])
def test_a_run_without_scores_is_not_drawn(tmp_path, joined):
    steps = [0, 20, 40]
    scores = {key: (steps, np.random.default_rng().random(3).tolist()) for key in claim.SCORES.values()}
    path = tmp_path / "claim.png"
    assert not claim.draw(str(path), {"run": {"loss": (steps, steps)}}, joined) and not path.exists()
    assert claim.draw(str(path), {"run": scores, "control": {}}, joined) and path.stat().st_size > 5000
