"""Attention against torch's fused kernel and plain linear maps, in the forms of processors and of XLA."""

import pytest
import torch

from itit.models import attention, layers
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


@pytest.fixture(params=["plain", "xla"])
def way(request, monkeypatch):
    """Both forms run on every device."""
    if request.param == "xla":
        monkeypatch.setattr(attention, "on_xla", lambda x: True)
    return request.param


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_and_its_gradients_equal_the_fused_kernel(dtype, tolerance, masked, way):
    inputs = [torch.randn(2, 3, n, 8).to(dtype).requires_grad_() for n in (5, 9, 9)]
    mask = torch.rand(2, 1, 5, 9) < 0.5 if masked else None
    if masked:
        mask[..., 4] = True
    weights, results = torch.randn(2, 3, 5, 8).to(dtype), []
    for function in (attention.attend, torch.nn.functional.scaled_dot_product_attention):
        out = function(*inputs, mask, layers.Dropout(0.0) if function is attention.attend else 0.0)
        assert out.dtype == dtype
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, atol=tolerance, rtol=tolerance)


def test_attend_drops_weights_and_keeps_their_mean(way):
    q, k, v = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 6, 8), torch.rand(1, 1, 6, 8) + 1
    draws = torch.cat([attention.attend(q, k, v, None, layers.Dropout(0.5)) for _ in range(4000)])
    assert len(draws.flatten(1).unique(dim=0)) > 30
    torch.testing.assert_close(draws.mean(0), attention.attend(q, k, v, None, layers.Dropout(0.0))[0], rtol=0.1, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_to_and_from_heads_equal_linear_maps(way, bias):
    into, out = layers.Linear(12, 3 * 12, bias=bias), layers.Linear(12, 12, bias=bias)
    x = torch.randn(2, 5, 12)
    heads = attention.project_heads(into, x, 4, 3)
    assert len(heads) == 3 and all(part.shape == (2, 4, 5, 3) for part in heads)
    with torch.no_grad():
        again = attention.project_heads(into, x, 4, 3)
    for a, b in zip(heads, again, strict=True):
        torch.testing.assert_close(a, b)
    for part, expected in zip(heads, into(x).chunk(3, -1), strict=True):
        assert torch.equal(attention.split_heads(attention.join_heads(part), 4), part)
        torch.testing.assert_close(attention.join_heads(part), expected)
        torch.testing.assert_close(attention.project_out(out, part), out(expected))
    layers.set_compute_dtype(into, torch.bfloat16)
    assert all(part.dtype == torch.bfloat16 for part in attention.project_heads(into, x, 4, 3))


def test_attention_and_its_gradients_are_alike_in_both_forms(monkeypatch):
    module, x, weights = layers.Attention(24, 3, 0.0), torch.randn(2, 7, 24, requires_grad=True), torch.randn(2, 7, 24)
    mask, results = torch.rand(2, 1, 7, 7) < 0.6, []
    mask |= torch.eye(7, dtype=torch.bool)
    for xla in (False, True):
        monkeypatch.setattr(attention, "on_xla", lambda _, xla=xla: xla)
        y = module(x, mask)
        results.append([y, *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(plain, other, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow(way):
    q, k, v = torch.full((1, 1, 1, 4), 100.0), torch.randn(1, 1, 5, 4) * 100, torch.randn(1, 1, 5, 4)
    expected = v[0, 0, k[0, 0].sum(-1).argmax()]
    torch.testing.assert_close(attention.attend(q, k, v, None)[0, 0, 0], expected)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_one_wide_query_equals_heads_of_their_own(dtype, tolerance):
    batch, num_heads, dim = 3, 4, 20
    q = torch.randn(batch, 1, dim).to(dtype)
    groups = [[torch.randn(batch, n, dim).to(dtype) for _ in range(2)] for n in (6, 9)]
    masks = torch.rand(batch, 6) < 0.5, torch.rand(1, 9) < 0.5
    masks[1][:, 0] = True
    found = attention.attend_wide(q, [(*group, mask) for group, mask in zip(groups, masks, strict=True)], num_heads)
    k, v = (attention.split_heads(torch.cat(part, 1), num_heads) for part in zip(*groups, strict=True))
    mask = torch.cat([masks[0], masks[1].expand(batch, -1)], 1)[:, None, None]
    expected = attention.join_heads(attention.attend(attention.split_heads(q, num_heads), k, v, mask))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
