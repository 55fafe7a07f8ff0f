"""Which image tokens are masked, which are dropped, and how many each decoding step keeps (paper sec. 7, table 3).

Shapes: B batch, N image tokens, K kept tokens. Everything has a fixed shape whatever is drawn.
"""

import math
from typing import NamedTuple

import torch


class Masking(NamedTuple):
    """`mask`, bool [B, N]: True where masked. `kept`, int64 [B, K], ascending: what the encoder sees."""

    mask: torch.Tensor
    kept: torch.Tensor


def num_dropped(num_tokens, ratio_min):
    """Masked tokens that never enter the encoder: 128 of 256 at the paper's least ratio of one half."""
    return math.floor(num_tokens * ratio_min)


def mask_ratio(uniform, mode, std, low, high):
    """Uniform draws in (0, 1) -> truncated normal with this mode and scale inside [low, high] (MAGE)."""
    a, b = (math.erf((x - mode) / std / math.sqrt(2)) for x in (low, high))
    z = torch.erfinv((a + uniform * (b - a)).clamp(-1 + 1e-6, 1 - 1e-6)) * math.sqrt(2)
    return (mode + std * z).clamp(low, high)


def draw_masking(ratio, noise, dropped):
    """Masks ceil(N ratio) tokens of each sample, those of the lowest noise; the lowest of all are dropped.

    Args:
      ratio: float [B], at least `dropped` / N, so that what is dropped is always masked.
      noise: float [B, N], no two equal.
      dropped: int, tokens left out of the encoder.
    """
    num_tokens = noise.shape[1]
    order = noise.argsort(1)
    rank = order.argsort(1)
    num_masked = torch.ceil(ratio * num_tokens)
    return Masking(rank < num_masked[:, None], order[:, dropped:].sort(1).values)


def keep_all(mask):
    """Nothing dropped: the encoder sees every slot, [MASK] where `mask` bool [B, N] is True."""
    return Masking(mask, torch.arange(mask.shape[1], device=mask.device).expand(mask.shape))


def drop_masked(mask, noise, dropped):
    """Drops `dropped` of the masked slots of each sample, those of the lowest noise, as `draw_masking` does.

    Args:
      mask: bool [B, N], at least `dropped` of each row True.
      noise: float [B, N], no two equal.
    """
    order = noise.masked_fill(~mask, torch.inf).argsort(1)
    return Masking(mask, order[:, dropped:].sort(1).values)


def mask_fraction(step, num_steps):
    """Share of the tokens still masked after `step` of `num_steps` (cosine schedule, MaskGIT)."""
    return math.cos(math.pi / 2 * (step + 1) / num_steps)


def decode_schedule(num_tokens, num_steps):
    """Masked tokens before each step, from all of them: ints, length `num_steps`."""
    counts = [num_tokens]
    for step in range(num_steps - 1):
        counts.append(max(1, min(counts[-1] - 1, math.floor(num_tokens * mask_fraction(step, num_steps)))))
    return counts
