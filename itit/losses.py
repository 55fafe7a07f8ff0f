"""Cross-entropy over tokens with label smoothing (paper eq. 1 and 2). Shapes: B batch, T tokens, V classes."""

import torch.nn.functional as F


def token_cross_entropy(logits, targets, weights, total, label_smoothing):
    """Weighted sum of the tokens' cross-entropies over `total`.

    `total` is the sum of the weights of the whole batch, however many parts or devices it is split into; the losses of
    the parts then add up to the loss of the batch, and so do their gradients.

    Args:
      logits: float [B, T, V]; -inf is not allowed where `label_smoothing` is above 0.
      targets: int64 [B, T].
      weights: float [B, T], 0 where a token does not count.
      total: float, 0-d.
      label_smoothing: share of the target spread evenly over all V classes.

    Returns:
      float32, 0-d.
    """
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
    )
    return (loss * weights.flatten()).sum() / total
