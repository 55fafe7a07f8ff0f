"""Keeping, restoring and looking up tokens by index.

On processors and GPUs a gather. XLA splits a gather with an index a sample badly over chips, and adds up the gradient
of a table row by row; there each is a product with a one-hot matrix, which the compiler builds on the fly.

Shapes: B batch, N tokens, K kept tokens, D width, V rows of a table.
"""

import torch
import torch.nn.functional as F


def on_xla(x):
    """Whether XLA's form is computed."""
    return x.device.type == "xla"


def one_hot(index, size, dtype):
    """int64 [...] -> [..., size], 1 at each index."""
    return (index[..., None] == torch.arange(size, device=index.device)).to(dtype)


def take_tokens(x, index):
    """Keeps tokens: [B, N] or [B, N, D] at index int64 [B, K] -> [B, K] or [B, K, D]."""
    if x.ndim == 2:
        if on_xla(x):
            chosen = index[..., None] == torch.arange(x.shape[1], device=x.device)  # [B, K, N]
            return (chosen & x[:, None]).any(-1) if x.dtype == torch.bool else (chosen * x[:, None]).sum(-1)
        return x.gather(1, index)
    if on_xla(x):
        return one_hot(index, x.shape[1], x.dtype) @ x
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def put_tokens(x, index, num_tokens):
    """Restores tokens: [B, K, D] to positions index int64 [B, K] of zeros [B, num_tokens, D]."""
    if on_xla(x):
        return one_hot(index, num_tokens, x.dtype).transpose(1, 2) @ x
    base = x.new_zeros(x.shape[0], num_tokens, x.shape[-1])
    return base.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), x)


def pick(x, index):
    """One number of each last axis: [..., V] at int64 [...] -> [...]."""
    if on_xla(x):
        chosen = index[..., None] == torch.arange(x.shape[-1], device=x.device)
        return torch.where(chosen, x, 0).sum(-1)
    return x.gather(-1, index[..., None])[..., 0]


def argmax(x, size=128):
    """Place of the first largest number of each last axis: [..., V] -> int64 [...].

    On XLA the best of every `size` first. It merges a search over all of them with the product that they come from,
    which then takes ten times as long.
    """
    if not on_xla(x):
        return x.argmax(-1)
    blocks = F.pad(x, (0, -x.shape[-1] % size), value=-torch.inf).unflatten(-1, (-1, size))
    best, place = blocks.max(-1)
    block = best.argmax(-1)
    return block * size + pick(place, block)


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cast, table, ids):
        ctx.save_for_backward(ids)
        ctx.rows, ctx.dtype = table.shape[0], cast.dtype
        return table[ids]

    @staticmethod
    def backward(ctx, grad):
        (ids,) = ctx.saved_tensors
        return add_rows(grad.to(ctx.dtype), ids, ctx.rows, ctx.dtype), None, None


def lookup(table, ids, cast=None):
    """Rows of a table [V, D] at int64 [...].

    `cast`: the table in another dtype, which on XLA gets the gradient in the table's place, by a product in that dtype:
    so that it is added to other gradients of the cast before it is exchanged between chips.
    """
    if not on_xla(table):
        return F.embedding(ids, table)
    return _Lookup.apply(table if cast is None else cast, table.detach(), ids)


def add_rows(grad, ids, rows, dtype):
    """The gradient of a lookup: sums grad [..., D] into a table [rows, D] at int64 [...]."""
    flat, ids = grad.flatten(0, -2), ids.flatten()
    if on_xla(grad):
        return (one_hot(ids, rows, dtype).T @ flat.to(dtype)).to(grad.dtype)
    return grad.new_zeros(rows, grad.shape[-1]).index_add_(0, ids, flat)
