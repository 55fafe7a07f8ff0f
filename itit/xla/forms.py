"""What XLA computes in other forms than plain torch (see ops.py). Imported when its first tensor is met.

- Tokens by index: XLA splits a gather with an index a sample badly over chips, and adds up the gradient of a table row
  by row. Here each is a product with a one-hot matrix, which the compiler builds on the fly.
- Products with weights: the gradients lie as the weights do.
- Attention: heads stand in the products themselves (`einsum`). Of what is taken apart afterwards the compiler makes
  copies, in as much time as the products take.

Shapes: as in ops.py; M memory tokens, L text tokens.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from itit import ops
from itit.models import cache
from itit.ops import form
from itit.xla import api

BLOCK = 128  # numbers that `argmax` searches at a time
_ROWS = "abc"  # letters of the leading dimensions

# erf(x / sqrt 2) as tanh(x (a + b x^2 + c x^4)), fitted by us to the least largest error of GELU, 2.6e-5. Where x^2 is
# above 25, 25 is put in its place: the polynomial would fall again, and tanh is 1 by then, but for 6e-7.
_TANH = 7.97506586e-01, 3.70068271e-02, -3.51708637e-04
_SQUARE_MAX = 25.0

# ---------------------------------------------------------------------------------------------- tokens by index


def one_hot(index, size, dtype):
    """int64 [...] -> [..., size], 1 at each index."""
    return (index[..., None] == torch.arange(size, device=index.device)).to(dtype)


@form(ops.take_tokens, "xla")
def take_tokens(x, index):
    if x.ndim == 2:
        chosen = index[..., None] == torch.arange(x.shape[1], device=x.device)  # [B, K, N]
        return (chosen & x[:, None]).any(-1) if x.dtype == torch.bool else (chosen * x[:, None]).sum(-1)
    return one_hot(index, x.shape[1], x.dtype) @ x


@form(ops.put_tokens, "xla")
def put_tokens(x, index, num_tokens):
    return one_hot(index, num_tokens, x.dtype).transpose(1, 2) @ x


@form(ops.pick, "xla")
def pick(x, index):
    chosen = index[..., None] == torch.arange(x.shape[-1], device=x.device)
    return torch.where(chosen, x, 0).sum(-1)


@form(ops.argmax, "xla")
def argmax(x):
    """The best of every block first. XLA merges a search over all of them with the product that they come from, which
    then takes ten times as long."""
    blocks = F.pad(x, (0, -x.shape[-1] % BLOCK), value=-torch.inf).unflatten(-1, (-1, BLOCK))
    best, place = blocks.max(-1)
    block = best.argmax(-1)
    return block * BLOCK + pick(place, block)


@form(ops.lookup, "xla")
def lookup(table, ids, cast=None):
    """The cast gets the gradient, by a product in its dtype: it is added to other gradients of the cast before it is
    exchanged between chips."""
    return _Lookup.apply(table if cast is None else cast, table.detach(), ids)


@form(ops.add_rows, "xla")
def add_rows(grad, ids, rows, dtype):
    flat, ids = grad.flatten(0, -2), ids.flatten()
    return (one_hot(ids, rows, dtype).T @ flat.to(dtype)).to(grad.dtype)


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


# ---------------------------------------------------------------------------------------------- layers


def product(equation, x, weight):
    """`torch.einsum` of two, such as "btd,khed->kbhte", over a mesh.

    A weight that several passes share has its gradients added up, then exchanged, only where each comes out of its
    product just as the weight lies; torch's own is turned round after it, and each would be exchanged.
    """
    return _Product.apply(equation, x, weight)


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


@form(ops.linear, "xla")
def linear(x, weight, bias=None):
    rows = _ROWS[: x.ndim - 1]
    y = product(f"{rows}i,oi->{rows}o", x, weight)
    return y if bias is None else y + bias


@form(ops.gelu, "xla")
def gelu(x):
    """In bfloat16 by tanh, which a TPU has in hardware, and not by erf, which takes as long as the product before it:
    at most 2.6e-5 away, and rounded to bfloat16 as always."""
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


@form(ops.enlarge, "xla")
def enlarge(x):
    """The gradient of torch's falls back to the host on all but TPUs."""
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(4).flatten(2, 3)  # from [B, C, G, 2, G, 2]


torch.library.define("itit::computed_once", "(Tensor x) -> Tensor")


@torch.library.impl("itit::computed_once", "CompositeExplicitAutograd")
def _copy(x):
    return x.clone()


@torch.library.impl("itit::computed_once", "XLA")
def _copy_and_keep(x):
    x = x.clone()
    api.barrier(x)
    return x


@form(ops.computed_once, "xla")
def computed_once(x):
    """Left to itself the compiler merges what is computed from a product with the next product, and there computes it
    again for every block of columns."""
    return _ComputedOnce.apply(x)


class _ComputedOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.ops.itit.computed_once(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


@form(ops.recomputed, "xla")
def recomputed(x, function, *args, draws=False):
    """Computed once: XLA would merge the second computation with the first. A chip of a pod has few rows."""
    return function(x, *args)


# ---------------------------------------------------------------------------------------------- attention


@form(ops.attend, "xla")
def attend(q, k, v, mask, dropout=None):
    """Where no weight is dropped, the sum of the weights comes out of their product with the values: as a sum it is a
    pass of its own over all of them."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if dropout is None or not dropout.drops:
        return _mean(scores, v)
    return torch.einsum("bhqk,bhkd->bhqd", dropout(scores.softmax(-1)).to(v.dtype), v)


def _mean(scores, v):
    """softmax(scores) @ v, with the sum of the weights from a column of ones beside v."""
    weights = (scores - scores.detach().amax(-1, keepdim=True)).exp().to(v.dtype)
    # The order in which the compiler computes them.
    sums = torch.einsum("bhqk,bhkd->bhdq", weights, F.pad(v, (0, 1), value=1.0)).float()
    return (sums[:, :, :-1] / sums[:, :, -1:]).to(v.dtype).transpose(2, 3)


@form(ops.project_heads, "xla")
def project_heads(x, linear, num_heads, parts):
    """The last part by a product of its own: out of a single one, what is made from it alone would be copied. With
    gradients all at once, since they are one product."""
    weight, bias = linear.cast("weight", linear.weight), linear.cast("bias", linear.bias)
    cut = [0, parts] if torch.is_grad_enabled() else [0, parts - 1, parts]
    x, size, found = x.to(weight.dtype), weight.shape[0] // parts, []
    for start, stop in itertools.pairwise(cut):
        rows = slice(start * size, stop * size)  # before heads are told apart: that costs no copy
        y = product("btd,khed->kbhte", x, weight[rows].unflatten(0, (-1, num_heads, size // num_heads)))
        found += y if bias is None else y + bias[rows].view(-1, 1, num_heads, 1, size // num_heads)
    return found


@form(ops.project_out, "xla")
def project_out(x, linear):
    weight, bias = linear.cast("weight", linear.weight), linear.cast("bias", linear.bias)
    y = product("bhte,dhe->btd", x.to(weight.dtype), weight.unflatten(1, (x.shape[1], -1)))
    return y if bias is None else y + bias


@form(ops.flatten_heads, "xla")
def flatten_heads(x):
    """By way of float32: else the compiler gives the heads their place in the product of the gradient with the weight,
    and copies the weight into another order for it."""
    return x.float().flatten(2).to(x.dtype)


# ---------------------------------------------------------------------------------------------- one token further


@form(cache.make_cache, "xla")
def make_cache(memory_mask, layers, length, num_heads):
    text = [tuple(x.new_zeros(x.shape[0], length, x.shape[2]) for x in layer) for layer in layers]
    return WideCache(memory_mask, layers, text, num_heads)


class WideCache(NamedTuple):
    """`cache.Cache` with heads side by side, where a head of its own would be padded to the width of a register; the
    text apart from the memory, because a token writes anew all that it writes to.

    `memory_mask`: bool [B, M]. `memory`, `text`: keys and values of each layer, [B, M, D] and [B, L, D].
    """

    memory_mask: torch.Tensor
    memory: list
    text: list
    num_heads: int

    def look(self, layer, position):
        """As `Cache.look`."""
        slots = torch.arange(self.text[layer][0].shape[1], device=position.device)
        here, seen = (slots == position)[:, None], (slots <= position)[None]

        def look(q, k, v):
            text = tuple(torch.where(here, new, old) for new, old in zip((k, v), self.text[layer], strict=True))
            self.text[layer] = text
            return attend_wide(q, [(*self.memory[layer], self.memory_mask), (*text, seen)], self.num_heads)

        return look

    def repeat(self, times):
        """As `Cache.repeat`."""
        memory, text = ([tuple(x.repeat_interleave(times, 0) for x in layer) for layer in part]
                        for part in (self.memory, self.text))  # fmt: skip
        return WideCache(self.memory_mask.repeat_interleave(times, 0), memory, text, self.num_heads)

    def reorder(self, rows):
        """As `Cache.reorder`."""
        return self._replace(text=[tuple(x.index_select(0, rows) for x in layer) for layer in self.text])


def attend_wide(q, groups, num_heads):
    """`ops.attend` of one query, heads side by side: each head's part of it stands in a row of its own, among zeros.

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


# ---------------------------------------------------------------------------------------------- how to compute


@form(ops.stacks, "xla")
def stacks(x, names):
    """All: they lie together (see buffers.py), and a program of few operations is compiled and started sooner."""
    return [names]
