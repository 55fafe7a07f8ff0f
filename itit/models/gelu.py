"""GELU (arXiv:1606.08415), x times the normal distribution's function at x."""

import torch
import torch.nn.functional as F

from itit.models.product import computed_once
from itit.tokens import on_xla

# erf(x / sqrt 2) as tanh(x (a + b x^2 + c x^4)), fitted by us to the least largest error of GELU, 2.6e-5. Where x^2 is
# above 25, 25 is put in its place: the polynomial would fall again, and tanh is 1 by then, but for 6e-7.
_TANH = 7.97506586e-01, 3.70068271e-02, -3.51708637e-04
_SQUARE_MAX = 25.0


def gelu(x):
    """float [...] -> [...].

    In bfloat16 on XLA by tanh, which a TPU has in hardware, and not by erf, which takes as long as the product before
    it: at most 2.6e-5 away, and rounded to bfloat16 as always.
    """
    if not on_xla(x):
        return F.gelu(x)
    y = TanhGelu.apply(x) if x.dtype == torch.bfloat16 else F.gelu(x)
    # For gradients it is kept anyway. A single token a row waits for the weights, not for this.
    return y if torch.is_grad_enabled() or x.shape[-2] == 1 else computed_once(y)


class TanhGelu(torch.autograd.Function):
    """x/2 (1 + tanh g(x)), with its own gradient; computed in float32."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        x32 = x.float()
        return (x32 * (0.5 + 0.5 * _argument(x32)[0].tanh())).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x32 = x.float()
        argument, slope = _argument(x32)
        tanh = argument.tanh()
        return (grad * (0.5 + 0.5 * tanh + 0.5 * x32 * (1 - tanh * tanh) * slope)).to(x.dtype)


def _argument(x):
    """g(x), and its slope where tanh is not yet 1."""
    a, b, c = _TANH
    square = (x * x).clamp(max=_SQUARE_MAX)
    return x * (a + square * (b + square * c)), a + square * (3 * b + square * 5 * c)
