"""The straight-through estimator and gradient scaling against a dense one-hot computation."""

import pytest
import torch
from scipy import stats

from itit.noise import gumbel
from itit.straight_through import scale_gradient, straight_through_embed
from tests.helpers.tiny import seeds


def dense(logits, table):
    """stopgrad(onehot(argmax) - softmax) + softmax, times the table, all written out."""
    probs = logits.softmax(-1)
    hard = torch.zeros_like(probs)
    for index in range(hard[..., 0].numel()):
        row = hard.view(-1, hard.shape[-1])[index]
        row[logits.view(-1, hard.shape[-1])[index].argmax()] = 1.0
    return ((hard - probs).detach() + probs) @ table


def draw(seed, shape=(3, 5, 17), width=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=dtype)
    return (logits, torch.randn(shape[-1], width, generator=generator, dtype=dtype),
            torch.randn(*shape[:-1], width, generator=generator, dtype=dtype))  # fmt: skip


@pytest.mark.parametrize("seed", seeds(4))
@pytest.mark.parametrize("forbidden", [[], [0, 11]])
def test_gradients_equal_the_dense_reference(seed, forbidden):
    logits, table, weight = draw(seed)
    logits[..., forbidden] = -torch.inf
    grads = []
    for function in (dense, lambda x, t: straight_through_embed(x, t, torch.float64)):
        a, b = logits.clone().requires_grad_(), table.clone().requires_grad_()
        (function(a, b).sin() * weight).sum().backward()  # a gradient that depends on the value embedded
        grads.append((a.grad, b.grad))
    (logits_dense, table_dense), (logits_grad, table_grad) = grads
    assert logits_dense.abs().max() > 0.01
    torch.testing.assert_close(logits_grad, logits_dense, rtol=1e-5, atol=1e-6)  # softmax is float32 in ours
    torch.testing.assert_close(table_grad, table_dense)
    assert (logits_grad[..., forbidden] == 0).all()


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_bit_equal_to_a_lookup(seed, dtype):
    logits, table, _ = draw(seed, dtype=torch.float32)
    table = table.to(dtype)
    found = straight_through_embed(logits.requires_grad_(), table)
    assert found.dtype == dtype
    for row in range(3):
        for slot in range(5):
            assert torch.equal(found[row, slot], table[int(logits[row, slot].argmax())])


def test_a_frozen_table_gets_no_gradient_and_frozen_logits_neither():
    logits, table, _ = draw(1, dtype=torch.float32)
    straight_through_embed(logits.requires_grad_(), table).sum().backward()
    assert table.grad is None
    assert logits.grad.abs().max() > 0
    table.requires_grad_()
    straight_through_embed(logits.detach(), table).sum().backward()
    counts = torch.bincount(logits.argmax(-1).flatten(), minlength=17).float()
    torch.testing.assert_close(table.grad, counts[:, None].expand(-1, 6))


@pytest.mark.parametrize("seed", seeds(2))
def test_a_product_in_bfloat16_is_close_to_float32(seed):
    logits, table, weight = draw(seed, dtype=torch.float32)
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.clone().requires_grad_()
        (straight_through_embed(x, table, dtype) * weight).sum().backward()
        assert x.grad.dtype == torch.float32
        grads.append(x.grad)
    assert not torch.equal(*grads)
    torch.testing.assert_close(grads[1], grads[0], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("seed", seeds(2))
def test_with_gumbel_noise_the_choice_is_a_sample_of_the_softmax(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, generator=generator)
    uniform = torch.rand(40_000, 9, generator=generator).clamp(1e-7)
    chosen = straight_through_embed(logits + gumbel(uniform), torch.eye(9)).argmax(-1)
    counts = torch.bincount(chosen, minlength=9).double().numpy()
    expected = logits.double().softmax(-1).numpy() * len(uniform)
    assert stats.chisquare(counts, expected).pvalue > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 1.0, 0.0])
def test_scale_gradient_changes_the_gradient_only(scale, dtype):
    x = torch.randn(50, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(50).to(dtype)
    y = scale_gradient(x, scale)
    assert torch.equal(y, x)
    (y * weight).sum().backward()
    torch.testing.assert_close(x.grad, scale * weight)
