"""Smoothed cross-entropy against NumPy in float64, loop by loop."""

import numpy as np
import pytest
import torch

from itit.losses import token_cross_entropy
from tests.helpers.tiny import seeds


def reference(logits, targets, weights, total, smoothing):
    """Loss and its gradient from the definition: target (1 - eps) onehot + eps / V."""
    batch, tokens, classes = logits.shape
    loss, grad = 0.0, np.zeros_like(logits)
    for b in range(batch):
        for t in range(tokens):
            shifted = logits[b, t] - logits[b, t].max()
            log_probs = shifted - np.log(np.exp(shifted).sum())
            target = np.full(classes, smoothing / classes)
            target[targets[b, t]] += 1 - smoothing
            loss -= weights[b, t] * (target * log_probs).sum() / total
            grad[b, t] = weights[b, t] * (np.exp(log_probs) - target) / total
    return loss, grad


def draw(seed, scale=2.0):
    random = np.random.default_rng(seed)
    weights = random.uniform(0, 2, (3, 5)) * (random.uniform(size=(3, 5)) < 0.7)
    return scale * random.standard_normal((3, 5, 11)), random.integers(0, 11, (3, 5)), weights


@pytest.mark.parametrize("seed", seeds(3))
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("scale", [2.0, 200.0])
def test_loss_and_gradient_against_numpy(seed, smoothing, scale):
    logits, targets, weights = draw(seed, scale)
    loss, grad = reference(logits, targets, weights, 7.5, smoothing)
    x = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    found = token_cross_entropy(x, torch.tensor(targets), torch.tensor(weights).float(), torch.tensor(7.5), smoothing)
    found.backward()
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.item(), loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", seeds(2))
def test_parts_over_the_same_total_add_up(seed):
    logits, targets, weights = (torch.tensor(x) for x in draw(seed))
    whole = token_cross_entropy(logits, targets, weights, weights.sum(), 0.1)
    parts = [
        token_cross_entropy(logits[rows], targets[rows], weights[rows], weights.sum(), 0.1)
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_half_precision_logits_are_summed_in_float32():
    logits, targets, weights = (torch.tensor(x) for x in draw(5))
    half = logits.bfloat16()
    found = token_cross_entropy(half, targets, weights.float(), torch.tensor(1.0), 0.1)
    loss, _ = reference(half.double().numpy(), targets.numpy(), weights.numpy(), 1.0, 0.1)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.item(), loss, rtol=1e-5)


def test_tokens_of_weight_zero_count_for_nothing():
    logits, targets, weights = (torch.tensor(x) for x in draw(6))
    weights[1] = 0
    other_logits, other_targets = logits.clone(), targets.clone()
    other_logits[1] = 9 * torch.randn(5, 11)
    other_targets[1] = 0
    args = weights, torch.tensor(3.0), 0.1
    assert torch.equal(
        token_cross_entropy(logits, targets, *args), token_cross_entropy(other_logits, other_targets, *args)
    )
