"""What a GPU computes in other forms than plain torch (see ops.py). Imported when its first tensor is met."""

import torch.nn.functional as F

from itit import ops


@ops.form(ops.attend, "cuda")
def attend(q, k, v, mask, dropout=None):
    """torch's fused kernels (flash attention), which draw what they drop themselves."""
    drops = dropout is not None and dropout.drops
    if drops and dropout.noise:
        return ops.attend.__wrapped__(q, k, v, mask, dropout)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout.rate if drops else 0.0)
