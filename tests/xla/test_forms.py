"""What the forms of XLA have of their own; they themselves, beside the plain ones, in tests/core/test_ops.py."""

import pytest
import scipy.stats
import torch

from itit.ops import attend, join_heads, split_heads
from itit.xla.sharding import axes
from tests.helpers import traced
from tests.helpers.compiler import needs_compiler
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.tpu import tpu_compiler
from tools.tpu.chips import Topology

pytest.importorskip("torch_xla")
from itit.xla import forms  # noqa: E402


def test_a_product_with_many_letters_and_its_gradients_equal_torchs():
    x, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 2, 5, 4, requires_grad=True)
    out, equation, results = torch.randn(3, 2, 2, 3, 5), "btd,khed->kbhte", []
    for function in (forms.product, torch.einsum):
        y = function(equation, x, weight)
        results.append([y, *torch.autograd.grad((y * out).sum(), [x, weight])])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)
    frozen = forms.product(equation, x, weight.detach())
    torch.testing.assert_close(torch.autograd.grad((frozen * out).sum(), x)[0], results[1][1])


@needs_compiler
def test_gradients_of_three_passes_are_exchanged_once(traced_programs):
    step = next(p for p in traced_programs if p.name == "three_passes")
    module = tpu_compiler.compile_program(step, Topology.parse("v4:2x2x1"), axes(4, 1)).module
    sizes = [c.size * c.count for c in module.collectives("none") if c.kind in ("reduce-scatter", "all-reduce")]
    assert sum(sizes) == 2 * traced.H * traced.D  # bfloat16


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_one_wide_query_equals_heads_of_their_own(dtype, tolerance):
    batch, num_heads, dim = 3, 4, 20
    q = torch.randn(batch, 1, dim).to(dtype)
    groups = [[torch.randn(batch, n, dim).to(dtype) for _ in range(2)] for n in (6, 9)]
    masks = torch.rand(batch, 6) < 0.5, torch.rand(1, 9) < 0.5
    masks[1][:, 0] = True
    found = forms.attend_wide(q, [(*group, mask) for group, mask in zip(groups, masks, strict=True)], num_heads)
    k, v = (split_heads(torch.cat(part, 1), num_heads) for part in zip(*groups, strict=True))
    mask = torch.cat([masks[0], masks[1].expand(batch, -1)], 1)[:, None, None]
    expected = join_heads(attend(split_heads(q, num_heads), k, v, mask))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------------------------------------- GELU by tanh


def numbers():
    return torch.cat([torch.randn(20000) * scale for scale in (1, 3, 30, 1e4)]).requires_grad_()


def exact(x):
    return x.detach().double() * torch.from_numpy(scipy.stats.norm.cdf(x.detach().double().numpy()))


def slope(x):
    x = x.detach().double().numpy()
    return torch.from_numpy(scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x))


def test_by_tanh_where_it_is_bfloat16_alone():
    x = numbers()
    assert torch.equal(forms.gelu(x.bfloat16()), forms.TanhGelu.apply(x.bfloat16()))
    weights = torch.randn_like(x)
    functions = (forms.gelu, torch.nn.functional.gelu)
    found, expected = (torch.autograd.grad((f(x) * weights).sum(), x)[0] for f in functions)
    assert torch.equal(found, expected)


def test_by_tanh_it_is_as_near_as_it_says():
    x = numbers()
    y = forms.TanhGelu.apply(x)
    assert ((y - exact(x)).abs() <= 2.6e-5 + 1e-6 * x.abs()).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad - slope(x)).abs().max() < 2e-4
    assert y.isfinite().all() and (y[x > 6] == x[x > 6]).all() and (y[x < -6].abs() < 1e-5).all()


def test_by_tanh_rounded_it_is_what_the_exact_one_rounds_to_or_next_to_it():
    x = numbers().detach().bfloat16().requires_grad_()
    y, expected = forms.TanhGelu.apply(x), exact(x)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - expected).abs() <= 2.6e-5 + expected.abs() * 2**-8).all()
    weights = torch.randn_like(x)
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    assert grad.dtype == torch.bfloat16
    assert (
        (grad.double() - slope(x) * weights.double()).abs() <= (2e-4 + slope(x).abs() * 2**-8) * weights.abs()
    ).all()
