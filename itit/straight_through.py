"""Gradient through a hard choice of tokens, and gradient scaling (paper sec. 3.2 and 7).

Both cycles turn logits into tokens and embed them. Forward is a lookup of the chosen rows; backward copies the
gradient of the one-hot vector to the softmax. The one-hot matrix itself is never built.

Shapes: B batch, K tokens, V choices, D width of a row.
"""

import torch

from itit.ops import add_rows


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, table, dtype):
        chosen = logits.argmax(-1)
        ctx.save_for_backward(logits.float().softmax(-1), chosen, table)
        ctx.dtype = dtype
        return table[chosen]

    @staticmethod
    def backward(ctx, grad):
        probs, chosen, table = ctx.saved_tensors
        grad_logits = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_probs = (grad.to(ctx.dtype) @ table.to(ctx.dtype).T).float()  # d/d one-hot, taken as d/d softmax
            grad_logits = probs * (grad_probs - (probs * grad_probs).sum(-1, keepdim=True))
        if ctx.needs_input_grad[1]:
            grad_table = add_rows(grad.to(table.dtype), chosen, len(table), ctx.dtype)
        return grad_logits, grad_table, None


def straight_through_embed(logits, table, dtype=torch.float32):
    """Embeds the most likely token: onehot(argmax) @ table forward, softmax @ table backward.

    Gumbel noise, where wanted, is added to the logits by the caller; the choice is then a sample of their softmax.

    Args:
      logits: float [B, K, V]; -inf forbids a choice.
      table: float [V, D]; gets the gradient of the lookup, if it wants one.
      dtype: of the product grad @ table.T in the backward pass.

    Returns:
      [B, K, D] in the table's dtype.
    """
    return _StraightThrough.apply(logits, table, dtype)


def scale_gradient(x, scale):
    """x forward, its gradient times `scale` backward: z = .1 z + stopgrad(.9 z) of paper sec. 7."""
    # The same derivative, but exact forward in every dtype.
    return x.detach() + scale * (x - x.detach())
