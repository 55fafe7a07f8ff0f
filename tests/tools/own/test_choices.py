"""tools.own.choices: what follows from the amounts, each a setting that a training takes."""

import numpy as np
import pytest

from itit.config import Config, replace
from itit.tasks import batches
from tools.own import choices


def counts(paired, texts, images):
    return {"paired": paired, "texts": texts, "images": images, "held_out": 1}


def resolved(flags, num_steps):
    return replace(Config(), num_steps=num_steps, **flags).resolve().objective


@pytest.mark.parametrize("num_steps", [1, 3, 40, 1500])
@pytest.mark.parametrize("texts, images", [(0, 0), (500, 0), (0, 500), (7, 5)])
def test_any_amounts_give_settings_that_are_taken(num_steps, texts, images):
    paired = int(np.random.default_rng().integers(1, 10**6))
    flags, said = choices.choose(counts(paired, texts, images), num_steps)
    found = resolved(flags, num_steps)
    sizes = batches(found)
    assert sizes["t2i"] > 0 and sizes["i2t"] > 0
    for cycle, there, what in (("t2i2t", texts, "texts"), ("i2t2i", images, "pictures")):
        assert sizes[cycle] <= there and (sizes[cycle] > 0) == (getattr(found, cycle) == "full") == (there > 0)
        (line,) = [line for line in said if cycle in line]
        assert what in line and ("is off" in line) == (not there)
        if there:
            joins = getattr(found, f"{cycle}_warmup_steps")
            assert joins <= max(1, num_steps // 4) and line.endswith(f"joins at step {joins}")


def test_few_pairs_lean_on_the_cycles_and_let_them_join_early():
    found = [
        resolved(choices.choose(counts(paired, 10**4, 10**4), 10**5)[0], 10**5) for paired in (30, 300, 3000, 10**6)
    ]
    joins = [objective.t2i2t_warmup_steps for objective in found]
    assert joins == sorted(joins) and joins[0] < joins[1] < joins[2] < joins[3] == 10**5 // 4
    assert joins[1] * found[1].i2t_batch == 20 * 300
    shares = [(o.t2i2t_batch + o.i2t2i_batch) / sum(batches(o).values()) for o in found]
    assert shares[0] == shares[1] > 0.5 > shares[2] == shares[3]
    assert all(o.i2t2i_batch == 2 * o.t2i2t_batch for o in found)
