"""Products with weights against torch's own, and that their gradients are added up before chips exchange them."""

import pytest
import torch
import torch.nn.functional as F

from itit.models import product
from itit.xla.sharding import axes
from tests.helpers import traced
from tests.helpers.compiler import needs_compiler
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.tpu import tpu_compiler
from tools.tpu.chips import Topology


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_and_its_gradients_equal_torchs(shape, bias, monkeypatch):
    monkeypatch.setattr(product, "on_xla", lambda x: True)
    x, weight = torch.randn(*shape, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    added = torch.randn(6, requires_grad=True) if bias else None
    inputs, results = [t for t in (x, weight, added) if t is not None], []
    out = torch.randn(*shape, 6)
    for function in (product.linear, F.linear):
        y = function(x, weight, added)
        results.append([y, *torch.autograd.grad((y * out).sum(), inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)


def test_a_product_with_many_letters_and_its_gradients_equal_torchs():
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 2, 5, 4, requires_grad=True)
    out, equation, results = torch.randn(3, 2, 2, 3, 5), "btd,khed->kbhte", []
    for function in (product.product, torch.einsum):
        y = function(equation, x, weight)
        results.append([y, *torch.autograd.grad((y * out).sum(), [x, weight])])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)
    frozen = product.product(equation, x, weight.detach())
    torch.testing.assert_close(torch.autograd.grad((frozen * out).sum(), x)[0], results[1][1])


def test_what_is_computed_once_is_the_same_tensor_with_the_same_gradient(monkeypatch):
    x, weights = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    assert product.computed_once(x) is x  # but on XLA
    monkeypatch.setattr(product, "on_xla", lambda x: True)
    y = product.computed_once(x)
    assert torch.equal(y, x) and torch.equal(torch.autograd.grad((y * weights).sum(), x)[0], weights)


@needs_compiler
def test_gradients_of_three_passes_are_exchanged_once(traced_programs):
    step = next(p for p in traced_programs if p.name == "three_passes")
    module = tpu_compiler.compile_program(step, Topology.parse("v4:2x2x1"), axes(4, 1)).module
    sizes = [c.size * c.count for c in module.collectives("none") if c.kind in ("reduce-scatter", "all-reduce")]
    assert sum(sizes) == 2 * traced.H * traced.D  # bfloat16
