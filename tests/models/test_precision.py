"""Weights that are cast once for many passes."""

import contextlib

import torch

from itit.models import cast_once, layers, weights_to_cast
from itit.models.precision import casts_of
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


def passes(model, table, x):
    """A pass without gradient, which is the first use, and two with."""
    with torch.no_grad():
        first = model[0](x)
    return sum(model[1](model[0](part), table).square().sum() for part in (first, x))


def test_gradients_are_those_of_casting_every_time():
    model, x = torch.nn.ModuleList([layers.Block(16, 2, 2.0, 0.0), layers.TiedHead(9)]), torch.randn(2, 5, 16)
    table = torch.randn(9, 16, requires_grad=True)
    small.stir(model)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        layers.set_compute_dtype(model, dtype)
        weights = [*model.parameters(), table]
        expected = torch.autograd.grad(passes(model, table, x), weights)
        with cast_once(model):
            found = torch.autograd.grad(passes(model, table, x), weights)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32
            assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_a_weight_is_cast_once_and_anew_the_next_time():
    linear, x = layers.Linear(4, 4), torch.randn(2, 4)
    layers.set_compute_dtype(linear, torch.bfloat16)
    with cast_once(linear):
        linear(x)
        kept = linear.kept["weight"]
        linear(x)
        assert linear.kept["weight"] is kept and kept.dtype == torch.bfloat16
    assert linear.kept is None
    with torch.no_grad():
        linear.weight.add_(1.0)
    with cast_once(linear):
        assert torch.equal(linear(x), torch.nn.functional.linear(x.bfloat16(), linear.weight.bfloat16(),
                                                                 linear.bias.bfloat16()))  # fmt: skip


def test_a_cast_made_before_stands_for_the_weight_and_passes_its_gradient_on():
    """Equal bit for bit to casting; only inside."""
    linear, x = layers.Linear(4, 4), torch.randn(3, 4)
    embedding, ids = layers.Embedding(9, 4, cast_ahead=False), torch.randint(9, (3,))
    model = torch.nn.ModuleList([linear, embedding, layers.LayerNorm(4)])
    layers.set_compute_dtype(model, torch.bfloat16)

    def gradients():
        y = linear(x) @ embedding.table().T + embedding(ids).sum()
        return torch.autograd.grad(y.float().square().sum(), [*linear.parameters(), embedding.weight])

    expected = gradients()
    casts = {name: weight.detach().to(dtype) for name, (weight, dtype) in weights_to_cast(model).items()}
    assert casts.keys() == {"0.weight", "0.bias"}  # a token table is cast where it is used
    for once in (contextlib.nullcontext(), cast_once(model)):
        with casts_of(model, casts), once:
            assert all(
                torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(gradients(), expected, strict=True)
            )
    with casts_of(model, {name: cast * 2 for name, cast in casts.items()}):
        assert torch.equal(linear(x), 2 * torch.nn.functional.linear(x.bfloat16(), casts["0.weight"], casts["0.bias"]))
    assert torch.equal(linear(x), torch.nn.functional.linear(x.bfloat16(), casts["0.weight"], casts["0.bias"]))
    layers.set_compute_dtype(model, torch.float32)
    assert weights_to_cast(model) == {}
