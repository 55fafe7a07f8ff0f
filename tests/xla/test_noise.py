"""Draws from counters: against NumPy, uniform, and the same wherever they are computed. No device is needed."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from itit.models.layers import Dropout
from itit.noise import hashed, indexed, prefixed
from itit.xla.noise import CounterNoise, counter_key
from tests.core.test_noise import check_numbered_rows
from tests.helpers.tiny import seeds


def counter_noise(*key):
    return CounterNoise(counter_key(*key))


@pytest.mark.parametrize("seed", seeds(2))
def test_numbered_rows_are_functions_of_their_number(seed):
    noise = counter_noise(seed, 3)
    check_numbered_rows(
        lambda name, shape, rows: noise._replace(rows=torch.tensor(rows, dtype=torch.int32))(name, shape)
    )


def test_rows_without_numbers_are_counted():
    noise = counter_noise(1, 2)
    assert torch.equal(noise("a", (4, 5)), noise._replace(rows=torch.arange(4, dtype=torch.int32))("a", (4, 5)))


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
    word = hashed("a/b")
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
