"""Named draws: the same for the same key, different for any other, uniform, and apart from torch's own state."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from itit import noise as noise_module
from itit.noise import Noise, gumbel, prefixed
from tests.helpers.tiny import seeds


@pytest.mark.parametrize("seed", seeds(2))
def test_a_key_repeats_whatever_was_drawn_before(seed):
    first = Noise(seed, 3, "cpu", 1)
    draws = {name: first(name, (4, 5)) for name in ("a", "b", "c")}
    second = Noise(seed, 3, "cpu", 1)
    for name in ("c", "a", "b"):
        assert torch.equal(second(name, (4, 5)), draws[name])


@pytest.mark.parametrize("seed", seeds(2))
def test_a_processors_draws_are_a_mersenne_twister_whose_whole_state_is_hashed(seed):
    key, name = (seed, 3, "part"), "t2i/mask"
    words = np.frombuffer(hashlib.shake_256(repr((*key, name)).encode()).digest(4 * 624), "<u4")
    twister = np.random.RandomState()
    twister.set_state(("MT19937", words, 624))
    drawn = twister.randint(0, 2**32, 2000, dtype=np.uint32)
    expected = np.maximum((drawn & (2**24 - 1)) * 2.0**-24, 2.0**-25).astype(np.float32)
    assert np.array_equal(Noise(seed, 3, "cpu", "part")(name, (2000,)).numpy(), expected)


def test_seeds_that_share_their_low_half_draw_differently(monkeypatch):
    """A generator of the processor looks at 32 bits of a seed; one of a GPU at all."""
    monkeypatch.setattr(noise_module, "hashed", lambda *words: 77)
    draws = [Noise(1, step, "cpu")(name, (50,)) for step in range(20) for name in "ab"]
    for a, b in itertools.combinations(draws, 2):
        assert not torch.equal(a, b)
    masks = []
    for step in range(20):
        Noise(1, step, "cpu").start_dropout(torch.nn.Identity())
        masks.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    for a, b in itertools.combinations(masks, 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("seed", seeds(2))
def test_every_part_of_the_key_matters(seed):
    keys = itertools.product((seed, seed + 1), (0, 1, 12), (0, 1, 2), ("t2i/mask", "t2i/ratio", "t2i2t/mask"))
    draws = {(s, step, part, name): Noise(s, step, "cpu", part)(name, (64,)) for s, step, part, name in keys}
    for (key, a), (other, b) in itertools.combinations(draws.items(), 2):
        assert (a == b).sum() <= 2, f"{key} and {other} draw alike"


def test_the_numbers_are_those_written_down():
    found = Noise(7, 11, "cpu", 2)("t2i/mask", (3,))
    torch.testing.assert_close(
        found, torch.tensor([0.497860848903656, 0.6773933172225952, 0.6759322681898608]), rtol=0, atol=0
    )


@pytest.mark.parametrize("seed", seeds(2))
def test_numbered_rows_are_functions_of_their_number(seed):
    check_numbered_rows(lambda name, shape, rows: Noise(seed, 3, "cpu", "part", rows)(name, shape))


def check_numbered_rows(noise):
    """`noise`: (name, shape, rows) -> draws."""

    def draw(rows, shape, name="a"):
        return noise(name, (len(rows), *shape), rows)

    rows = [7, 0, 29_999, 3]
    whole = draw(rows, (4, 500))
    assert whole.shape == (4, 4, 500) and (whole > 0).all() and (whole < 1).all()
    for i, row in enumerate(rows):
        assert torch.equal(draw([row], (4, 500))[0], whole[i])
    assert torch.equal(draw([3, 7], (4, 500)), whole[[3, 0]])
    assert stats.kstest(whole.flatten().numpy(), "uniform").pvalue > 1e-5
    others = [*whole.flatten(1), *draw(rows, (4, 500), "b").flatten(1)]
    for a, b in itertools.combinations(others, 2):
        assert (a == b).sum() <= 2


@pytest.mark.parametrize("seed", seeds(2))
def test_uniform_and_gumbel_laws(seed):
    uniform = Noise(seed, 0, "cpu")("law", (20_000,))
    assert uniform.dtype == torch.float32
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-5
    assert stats.kstest(gumbel(uniform).double().numpy(), "gumbel_r").pvalue > 1e-5


def test_no_draw_makes_gumbel_noise_infinite(monkeypatch):
    for extreme in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(torch, "rand", lambda shape, value=extreme, out=None, **_: out.fill_(value))
        uniform = Noise(0, 0, "cpu")("x", (2,))
        assert (uniform > 0).all()
        assert (uniform < 1).all()
        assert torch.isfinite(gumbel(uniform)).all()


def test_torchs_own_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Noise(0, 0, "cpu")("x", (100,))
    assert torch.equal(torch.rand(3), expected)


def test_dropout_follows_the_key():
    def dropped(*key):
        seed, step, part = key
        Noise(seed, step, "cpu", part).start_dropout(torch.nn.Identity())
        return torch.nn.functional.dropout(torch.ones(256), 0.5)

    assert torch.equal(dropped(1, 2, 3), dropped(1, 2, 3))
    first = dropped(1, 2, 3)
    Noise(1, 2, "cpu", 4).start_dropout(torch.nn.Identity(), is_first=False)  # goes on
    assert not torch.equal(torch.nn.functional.dropout(torch.ones(256), 0.5), first)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 0)):
        assert not torch.equal(dropped(1, 2, 3), dropped(*other))


def test_a_prefix_is_part_of_the_name():
    noise = Noise(1, 2, "cpu")
    found = prefixed(noise, "cycle")("token", (8,))
    assert torch.equal(found, noise("cycle/token", (8,)))
    assert not torch.equal(found, noise("token", (8,)))
