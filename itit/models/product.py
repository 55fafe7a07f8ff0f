"""Products with weights: torch's own, and on XLA with gradients that lie as the weights do."""

import torch
import torch.nn.functional as F

from itit.tokens import on_xla

_ROWS = "abc"  # letters of the leading dimensions

COMPUTED_ONCE = "itit::computed_once"  # an operation of torch, which itit/xla/mesh.py gives to XLA
torch.library.define(COMPUTED_ONCE, "(Tensor x) -> Tensor")


@torch.library.impl(COMPUTED_ONCE, "CompositeExplicitAutograd")
def _copy(x):
    return x.clone()


def linear(x, weight, bias=None):
    """`F.linear`: float [..., D], [O, D], [O] -> [..., O]."""
    if not on_xla(x):
        return F.linear(x, weight, bias)
    rows = _ROWS[: x.ndim - 1]
    y = product(f"{rows}i,oi->{rows}o", x, weight)
    return y if bias is None else y + bias


def product(equation, x, weight):
    """`torch.einsum` of two, such as "btd,khed->kbhte", for XLA over a mesh.

    A weight that several passes share has its gradients added up, then exchanged, only where each comes out of its
    product just as the weight lies; torch's own is turned round after it, and each would be exchanged.
    """
    return _Product.apply(equation, x, weight)


def computed_once(x):
    """The same tensor, which XLA computes and keeps before it goes on.

    Left to itself the compiler merges what is computed from a product with the next product, and there computes it
    again for every block of columns.
    """
    return _ComputedOnce.apply(x) if on_xla(x) else x


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, equation, x, weight):
        ctx.save_for_backward(x, weight)
        ctx.equation = equation
        return torch.einsum(equation, x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        inputs, output = ctx.equation.split("->")
        of_x, of_weight = inputs.split(",")
        needs = ctx.needs_input_grad
        return (
            None,
            torch.einsum(f"{output},{of_weight}->{of_x}", grad, weight) if needs[1] else None,
            torch.einsum(f"{output},{of_x}->{of_weight}", grad, x) if needs[2] else None,
        )


class _ComputedOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.ops.itit.computed_once(x)

    @staticmethod
    def backward(ctx, grad):
        return grad
