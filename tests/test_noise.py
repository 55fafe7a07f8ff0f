"""Named draws: the same for the same key, different for any other, uniform, and apart from torch's own state."""

import itertools

import pytest
import torch
from scipy import stats

from itit.noise import Noise, gumbel, prefixed
from tests.tiny import seeds


@pytest.mark.parametrize("seed", seeds(2))
def test_a_key_repeats_whatever_was_drawn_before(seed):
    first = Noise(seed, 3, "cpu", 1)
    draws = {name: first(name, (4, 5)) for name in ("a", "b", "c")}
    second = Noise(seed, 3, "cpu", 1)
    for name in ("c", "a", "b"):
        assert torch.equal(second(name, (4, 5)), draws[name])


@pytest.mark.parametrize("seed", seeds(2))
def test_every_part_of_the_key_matters(seed):
    keys = itertools.product((seed, seed + 1), (0, 1, 12), (0, 1, 2), ("t2i/mask", "t2i/ratio", "t2i2t/mask"))
    draws = {(s, step, part, name): Noise(s, step, "cpu", part)(name, (64,)) for s, step, part, name in keys}
    for (key, a), (other, b) in itertools.combinations(draws.items(), 2):
        assert (a == b).sum() <= 2, f"{key} and {other} draw alike"


def test_the_numbers_are_those_written_down():
    found = Noise(7, 11, "cpu", 2)("t2i/mask", (3,))
    torch.testing.assert_close(
        found, torch.tensor([0.05080127716064453, 0.514802873134613, 0.6904982924461365]), rtol=0, atol=0
    )


@pytest.mark.parametrize("seed", seeds(2))
def test_uniform_and_gumbel_laws(seed):
    uniform = Noise(seed, 0, "cpu")("law", (20_000,))
    assert uniform.dtype == torch.float32
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-5
    assert stats.kstest(gumbel(uniform).double().numpy(), "gumbel_r").pvalue > 1e-5


def test_no_draw_makes_gumbel_noise_infinite(monkeypatch):
    for extreme in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(torch, "rand", lambda shape, value=extreme, **_: torch.full(shape, value))
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
        Noise(seed, step, "cpu", part).seed_dropout()
        return torch.nn.functional.dropout(torch.ones(256), 0.5)

    assert torch.equal(dropped(1, 2, 3), dropped(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 0)):
        assert not torch.equal(dropped(1, 2, 3), dropped(*other))


def test_a_prefix_is_part_of_the_name():
    noise = Noise(1, 2, "cpu")
    found = prefixed(noise, "cycle")("token", (8,))
    assert torch.equal(found, noise("cycle/token", (8,)))
    assert not torch.equal(found, noise("token", (8,)))
