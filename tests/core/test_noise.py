"""Named draws: the same for the same key, different for any other, uniform, and apart from torch's own state."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from itit import noise as noise_module
from itit.models.layers import Dropout
from itit.noise import CounterNoise, Noise, counter_key, gumbel, indexed, prefixed
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
    monkeypatch.setattr(noise_module, "_hash", lambda *words: 77)
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
@pytest.mark.parametrize("kind", [Noise, CounterNoise])
def test_numbered_rows_are_functions_of_their_number(seed, kind):
    def draw(rows, shape, name="a"):
        if kind is Noise:
            return Noise(seed, 3, "cpu", "part", rows)(name, (len(rows), *shape))
        return CounterNoise(counter_key(seed, 3), rows=torch.tensor(rows, dtype=torch.int32))(name, (len(rows), *shape))

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


def test_rows_without_numbers_are_counted():
    noise = counter_noise(1, 2)
    assert torch.equal(noise("a", (4, 5)), noise._replace(rows=torch.arange(4, dtype=torch.int32))("a", (4, 5)))


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


def counter_noise(*key):
    return CounterNoise(counter_key(*key))


def mixed(x, middle=0):
    """The mixer of the counters in NumPy's unsigned arithmetic."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = x ^ np.uint32(middle)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 6, 7)])
def test_counter_noise_is_the_hash_of_row_and_cell(seed, shape):
    key = counter_key(seed, 3).numpy().view(np.uint32)
    word = noise_module._hash("a/b")
    rows, cells = np.arange(shape[0], dtype=np.uint32), np.arange(int(np.prod(shape[1:])), dtype=np.uint32)
    with np.errstate(over="ignore"):
        low, high = mixed(key[0] ^ np.uint32(word & 0xFFFFFFFF)), mixed(key[1] ^ np.uint32(word >> 31 & 0xFFFFFFFF))
        low, high = mixed(rows ^ low), mixed(rows * np.uint32(0x3C6EF372) ^ high)
        bits = mixed(cells[None] ^ low[:, None], high[:, None])
    expected = np.maximum((bits >> np.uint32(8)) * 2.0**-24, 2.0**-25).astype(np.float32).reshape(shape)
    found = prefixed(counter_noise(seed, 3), "a")("b", shape)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("seed", seeds(2))
def test_counter_noise_is_uniform_and_uncorrelated(seed):
    noise = counter_noise(seed, 0)
    uniform = noise("law", (64, 4096)).double()
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-5
    assert (uniform > 0).all() and (uniform < 1).all()
    centred = (uniform - 0.5) * 12**0.5
    # Rows with each other, cells with the next one, and with the same place under other names, keys and turns.
    between = centred @ centred.T / 4096 - torch.eye(64)
    assert between.fill_diagonal_(0).abs().max() < 6 / 4096**0.5
    assert abs(float((centred[:, 1:] * centred[:, :-1]).mean())) < 6 / (64 * 4095) ** 0.5
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 6 / (63 * 4096) ** 0.5
    others = [counter_noise(seed + 1, 0), counter_noise(seed, 1), counter_noise(seed, 0, 1), prefixed(noise, "x")]
    others += [indexed(noise, i) for i in range(3)]
    draws = [uniform, noise("other", (64, 4096)).double(), *(other("law", (64, 4096)).double() for other in others)]
    for a, b in itertools.combinations(draws, 2):
        assert abs(float(((a - 0.5) * (b - 0.5)).mean()) * 12) < 6 / (64 * 4096) ** 0.5
        assert (a == b).float().mean() < 1e-4
    bits = (uniform * 2**24).long()
    for bit in range(24):
        assert abs(float((bits >> bit & 1).double().mean()) - 0.5) < 6 * 0.5 / (64 * 4096) ** 0.5, bit


def test_counter_noise_of_some_rows_is_that_of_all():
    noise = counter_noise(1, 2)
    assert torch.equal(noise("a", (8, 5))[:3], noise("a", (3, 5)))


def test_a_turn_may_be_a_number_or_a_tensor():
    noise = counter_noise(1, 2)
    for turn in (0, 1, 23):
        assert torch.equal(indexed(noise, turn)("a", (4,)), indexed(noise, torch.tensor(turn))("a", (4,)))


def test_dropouts_of_a_model_draw_from_counter_noise_anew_at_every_call():
    model = torch.nn.ModuleDict({"a": Dropout(0.3), "b": Dropout(0.3)}).train()
    noise, ones = counter_noise(5, 0), torch.ones(64, 1024)
    noise.start_dropout(model)
    draws = [model["a"](ones), model["a"](ones), model["b"](ones)]
    noise.start_dropout(model)
    assert torch.equal(model["a"](ones), draws[0]) and torch.equal(model["a"](ones), draws[1])
    for a, b in itertools.combinations(draws, 2):
        assert 0.4 < (a == b).float().mean() < 0.75  # .58 where independent
    for x in draws:
        assert set(x.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1 - 0.3))}
        assert abs(float((x == 0).double().mean()) - 0.3) < 6 * (0.21 / x.numel()) ** 0.5
    model.eval()
    assert model["a"](ones) is ones
