"""Operations that have more than one form, here in plain torch: which one is computed is nobody's business elsewhere.

A backend with a better form of one registers it, in `backends/forms.py` or `xla/forms.py`:

    @form(ops.take_tokens, "xla")
    def take_tokens(x, index): ...

The first argument is a tensor, and its device decides. The numbers are the same, but for how they are rounded.

Shapes: B batch, N tokens, K kept tokens, T tokens of a sequence, D width, H heads, V rows of a table or choices.
"""

import functools
import importlib

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

FORMS = {}  # (operation, type of device) -> its form there
MODULES = {"cuda": "itit.backends.forms", "xla": "itit.xla.forms"}  # type of device -> where its forms are
LOADED = set()  # types of devices whose forms are there


def op(plain):
    """Decorator: an operation, and its form for every device that registers none."""

    @functools.wraps(plain)
    def operation(x, *args, **kwargs):
        device = x.device.type
        if device in MODULES and device not in LOADED:
            load(device)
        return FORMS.get((operation, device), plain)(x, *args, **kwargs)

    return operation


def form(operation, device):
    """Decorator: the form of an operation on a type of device."""

    def register(function):
        FORMS[operation, device] = function
        return function

    return register


def load(device):
    """Imports the forms of a type of device, when the first tensor of it is met: there is no other way to miss them."""
    if device in MODULES:
        importlib.import_module(MODULES[device])
        LOADED.add(device)


# ---------------------------------------------------------------------------------------------- tokens by index


@op
def take_tokens(x, index):
    """Keeps tokens: [B, N] or [B, N, D] at index int64 [B, K] -> [B, K] or [B, K, D]."""
    return x.gather(1, index if x.ndim == 2 else index[..., None].expand(-1, -1, x.shape[-1]))


@op
def put_tokens(x, index, num_tokens):
    """Restores tokens: [B, K, D] to positions index int64 [B, K] of zeros [B, num_tokens, D]."""
    base = x.new_zeros(x.shape[0], num_tokens, x.shape[-1])
    return base.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), x)


@op
def pick(x, index):
    """One number of each last axis: [..., V] at int64 [...] -> [...]."""
    return x.gather(-1, index[..., None])[..., 0]


@op
def argmax(x):
    """Place of the first largest number of each last axis: [..., V] -> int64 [...]."""
    return x.argmax(-1)


@op
def lookup(table, ids, cast=None):
    """Rows of a table [V, D] at int64 [...].

    `cast`: the table in the dtype of the products, which may get the gradient in the table's place.
    """
    return F.embedding(ids, table)


@op
def add_rows(grad, ids, rows, dtype):
    """The gradient of a lookup: sums grad [..., D] into a table [rows, D] at int64 [...]. Products are in `dtype`."""
    return grad.new_zeros(rows, grad.shape[-1]).index_add_(0, ids.flatten(), grad.flatten(0, -2))


# ---------------------------------------------------------------------------------------------- layers


@op
def linear(x, weight, bias=None):
    """`F.linear`: float [..., D], [O, D], [O] -> [..., O]."""
    return F.linear(x, weight, bias)


@op
def gelu(x):
    """x times the normal distribution's function at x (arXiv:1606.08415): float [...] -> [...]."""
    return F.gelu(x)


@op
def enlarge(x):
    """Pictures of twice the side, by nearest neighbour: [B, C, G, G] -> [B, C, 2 G, 2 G]."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


@op
def computed_once(x):
    """The same tensor. A compiler, which may compute anew in every product what the product reads, keeps it."""
    return x


@op
def recomputed(x, function, *args, draws=False):
    """`function(x, *args)`, computed again in the backward pass in the place of keeping what it has inside.

    `draws`: whether it does, by torch's generators: then the same numbers again.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return function(x, *args)
    return checkpoint(function, x, *args, use_reentrant=False, preserve_rng_state=draws)


# ---------------------------------------------------------------------------------------------- attention


@op
def attend(q, k, v, mask, dropout=None):
    """Scaled dot-product attention, softmax in float32.

    Args:
      q, k, v: float [B, H, T, D / H], [B, H, keys, D / H] twice.
      mask: bool, broadcast to [B, H, T, keys], True where a query may look; or None for everywhere.
      dropout: `layers.Dropout` of the attention weights, if any.

    Returns:
      [B, H, T, D / H].
    """
    # On a processor torch's fused kernel is no faster, and with matmul_precision=medium it doubles the time of a step.
    scores = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    return (dropout(weights) if dropout else weights).to(v.dtype) @ v


def split_heads(x, num_heads):
    """[B, T, D] -> [B, H, T, D / H]."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x):
    """[B, H, T, D / H] -> [B, T, D]."""
    return x.transpose(1, 2).flatten(2)


@op
def project_heads(x, linear, num_heads, parts):
    """A linear map to heads: [B, T, D] -> `parts` times [B, H, T, D / H], such as queries, keys and values."""
    return linear(x).unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


@op
def project_out(x, linear):
    """A linear map from heads: [B, H, T, D / H] -> [B, T, D]."""
    return linear(join_heads(x))


@op
def flatten_heads(x):
    """[B, T, H, D / H] -> [B, T, D], of the same dtype."""
    return x.flatten(2)


# ---------------------------------------------------------------------------------------------- how to compute


@op
def stacks(x, names):
    """Names of tensors like `x`, cut into lists of those that are updated as one: each alone, for a stack copies."""
    return [[name] for name in names]


def at_hand(x):
    """Whether numbers of `x` can be looked at right away; elsewhere the host would wait for all that was started."""
    return x.device.type == "cpu"


def no_autocast(x):
    """Inside, products with `x` are in its own dtype."""
    return torch.autocast(x.device.type, enabled=False)
