"""Multi-head attention.

Shapes: B batch, T tokens, D width, H heads.

XLA gets the same numbers in other forms. Heads stand in the products themselves (`einsum`): of what is taken apart
afterwards the compiler makes copies, in as much time as the products take. Where no weight is dropped, the sum of the
weights comes out of their product with the values: as a sum it is a pass of its own over all of them.
"""

import itertools

import torch
import torch.nn.functional as F

from itit.models.product import product
from itit.tokens import on_xla


def attend(q, k, v, mask, dropout=None):
    """Scaled dot-product attention, softmax in float32.

    Args:
      q, k, v: float [B, H, T, D / H], [B, H, keys, D / H] twice.
      mask: bool, broadcast to [B, H, T, keys], True where a query may look; or None for everywhere.
      dropout: Dropout of the attention weights, if any.

    Returns:
      [B, H, T, D / H].
    """
    drops = dropout is not None and dropout.drops
    if q.device.type == "cuda" and not (drops and dropout.noise):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout.rate if drops else 0.0)
    # On a processor torch's fused kernel is no faster, and with matmul_precision=medium it doubles the time of a step.
    # XLA has none: it would write the same out, with dropout by its own generator.
    q = q * q.shape[-1] ** -0.5
    scores = (torch.einsum("bhqd,bhkd->bhqk", q, k) if on_xla(q) else q @ k.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if on_xla(q) and not drops:
        return _mean(scores, v)
    weights = scores.softmax(-1)
    weights = (dropout(weights) if drops else weights).to(v.dtype)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v) if on_xla(q) else weights @ v


def _mean(scores, v):
    """softmax(scores) @ v, with the sum of the weights from a column of ones beside v."""
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp().to(v.dtype)
    # The order in which the compiler computes them.
    sums = torch.einsum("bhqk,bhkd->bhdq", weights, F.pad(v, (0, 1), value=1.0)).float()
    return (sums[:, :, :-1] / sums[:, :, -1:]).to(v.dtype).transpose(2, 3)


def attend_wide(q, groups, num_heads):
    """`attend` of one query, heads side by side: each head's part of it stands in a row of its own, among zeros.

    Args:
      q: float [B, 1, D].
      groups: of keys, (keys [B, T, D], values [B, T, D], mask bool [B or 1, T], True where it may look) each.

    Returns:
      [B, 1, D].
    """
    size = q.shape[-1] // num_heads
    places, heads = (torch.arange(n, device=q.device) for n in (q.shape[-1], num_heads))
    own = places // size == heads[:, None]  # [H, D]
    rows = torch.where(own, q * size**-0.5, 0)  # [B, H, D]
    scores = [(rows @ keys.transpose(1, 2)).float().masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
              for keys, _, mask in groups]  # fmt: skip
    weights = torch.cat(scores, -1).softmax(-1).to(q.dtype).split([x.shape[-1] for x in scores], -1)
    seen = sum(w @ values for w, (_, values, _) in zip(weights, groups, strict=True))  # [B, H, D]
    return torch.where(own, seen, 0).sum(1, keepdim=True)


def split_heads(x, num_heads):
    """[B, T, D] -> [B, H, T, D / H]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x):
    """[B, H, T, D / H] -> [B, T, D]."""
    return x.transpose(1, 2).flatten(2)


def project_heads(linear, x, num_heads, parts):
    """A linear map to heads: [B, T, D] -> `parts` times [B, H, T, D / H], such as queries, keys and values."""
    if not on_xla(x):
        return linear(x).unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)
    weight, bias = linear.cast("weight", linear.weight), linear.cast("bias", linear.bias)
    # The last part by a product of its own: out of a single one, what is made from it alone would be copied. With
    # gradients all at once, since they are one product.
    cut = [0, parts] if torch.is_grad_enabled() else [0, parts - 1, parts]
    x, size, found = x.to(weight.dtype), weight.shape[0] // parts, []
    for start, stop in itertools.pairwise(cut):
        rows = slice(start * size, stop * size)  # before heads are told apart: that costs no copy
        y = product("btd,khed->kbhte", x, weight[rows].unflatten(0, (-1, num_heads, size // num_heads)))
        found += y if bias is None else y + bias[rows].view(-1, 1, num_heads, 1, size // num_heads)
    return found


def project_out(linear, x):
    """A linear map from heads: [B, H, T, D / H] -> [B, T, D]."""
    if not on_xla(x):
        return linear(join_heads(x))
    weight, bias = linear.cast("weight", linear.weight), linear.cast("bias", linear.bias)
    y = product("bhte,dhe->btd", x.to(weight.dtype), weight.unflatten(1, (x.shape[1], -1)))
    return y if bias is None else y + bias
