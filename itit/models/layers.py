"""Transformer parts shared by the encoder and both decoders.

Shapes: B batch, T tokens, D width, H heads.

Weights are float32; matrix products run in `compute_dtype` by explicit casts, which behave alike on every backend
(autocast does not). The residual stream, LayerNorm and softmax stay float32.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from itit.models.precision import CastsWeights
from itit.ops import attend, gelu, linear, lookup, project_heads, project_out, recomputed

NORM_EPS = 1e-6


class Linear(CastsWeights, nn.Linear):
    """`nn.Linear` with float32 weights and a product in `compute_dtype`."""

    def forward(self, x):
        return linear(x.to(self.compute_dtype), self.cast("weight", self.weight), self.cast("bias", self.bias))


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that computes and returns float32."""

    def __init__(self, dim):
        super().__init__(dim, eps=NORM_EPS)

    def forward(self, x):
        return super().forward(x.float())


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32 whatever the dtype of x; the result has x's dtype."""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + NORM_EPS)
        return (x32 * self.weight.float()).to(x.dtype)


class Embedding(CastsWeights, nn.Embedding):
    """`nn.Embedding` whose gradient, where that is a product, is computed in `compute_dtype`."""

    def __init__(self, num_tokens, dim, cast_ahead):
        super().__init__(num_tokens, dim)
        self.cast_ahead = cast_ahead

    def forward(self, ids):
        return lookup(self.weight, ids, self.table())

    def table(self, rows=None):
        """[V, D], or its first rows, in `compute_dtype`, for a tied head."""
        table = self.cast("weight", self.weight)
        if rows is None or self.kept is None:
            return table[:rows]
        if rows not in self.kept:  # cut once, that the gradients of all heads are added up before they are exchanged
            with torch.enable_grad():
                self.kept[rows] = table[:rows]
        return self.kept[rows]


class Dropout(nn.Module):
    """Dropout by torch's own generators, or by `noise(name, shape)` where one is given (see noise.py)."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.noise, self.num_calls = None, 0

    @property
    def drops(self):
        return self.training and self.rate > 0

    def forward(self, x):
        if not self.drops:
            return x
        if self.noise is None:
            return F.dropout(x, self.rate)
        self.num_calls += 1
        kept = self.noise(str(self.num_calls), x.shape) >= self.rate
        return torch.where(kept, x / (1 - self.rate), 0)


class TiedHead(nn.Module):
    """Logits by a product with a token table owned by another module, plus a bias of its own."""

    compute_dtype = torch.float32
    returns_rows = True  # [B, ...]: a mesh keeps it split by rows

    def __init__(self, num_tokens):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_tokens))

    def forward(self, x, table):
        """float [B, T, D], [V, D] -> float32 [B, T, V]."""
        return linear(x.to(self.compute_dtype), table.to(self.compute_dtype)).float() + self.bias


def set_compute_dtype(module, dtype):
    """Makes every matrix product below `module` run in `dtype`."""
    for part in module.modules():
        if hasattr(part, "compute_dtype"):
            part.compute_dtype = dtype


def recompute_blocks(module):
    """The blocks below `module` keep what goes into them alone, and are computed again in the backward pass, with the
    same draws: less memory for a longer step."""
    for part in module.modules():
        if isinstance(part, Block):
            part.forward = functools.partial(_recomputed, part.forward)


def _recomputed(forward, x, *args, **kwargs):
    return recomputed(x, functools.partial(forward, **kwargs), *args, draws=True)


class Attention(nn.Module):
    """Multi-head self-attention with biases, dropout on the probabilities and on the output."""

    def __init__(self, dim, num_heads, dropout):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.dropout, self.weight_dropout = Dropout(dropout), Dropout(dropout)

    def forward(self, x, mask=None, look=None):
        """[B, T, D] -> [B, T, D].

        Args:
          mask: bool, broadcast to [B, H, T, keys]; True where a query may look.
          look: (q, k, v), [B, T, D] each -> what is seen, [B, T, D]; where a cache comes in.
        """
        if look is not None:
            return self.dropout(self.out(look(*self.qkv(x).chunk(3, -1))))
        q, k, v = project_heads(x, self.qkv, self.num_heads, 3)
        return self.dropout(project_out(attend(q, k, v, mask, self.weight_dropout), self.out))


class Mlp(nn.Module):
    def __init__(self, dim, hidden_dim, dropout):
        super().__init__()
        self.up = Linear(dim, hidden_dim)
        self.down = Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.down(gelu(self.up(x))))


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x)) without biases (arXiv:2002.05202): SwiGLU by default. It has half as many
    weights again as an `Mlp` of the same hidden width.

    `linear`: kind of its maps; that of ITIT's own networks is `Linear`.
    """

    def __init__(self, dim, hidden_dim, dropout, activation=F.silu, linear=Linear):
        super().__init__()
        self.gate = linear(dim, hidden_dim, bias=False)
        self.up = linear(dim, hidden_dim, bias=False)
        self.down = linear(hidden_dim, dim, bias=False)
        self.dropout, self.activation = Dropout(dropout), activation

    def forward(self, x):
        return self.dropout(self.down(self.activation(self.gate(x)) * self.up(x)))


class Block(nn.Module):
    """Attention and MLP on a residual stream, a norm before ("pre") or after ("post") each.

    Args:
      norm_layer: width -> the norm.
      mlp_layer: (width, hidden width, dropout) -> the MLP. Linear maps in it are `Linear`, not torch's own.
    """

    returns_rows = True  # [B, ...]: a mesh keeps it split by rows
    repeated = ("forward",)  # methods that a backend may compile

    def __init__(self, dim, num_heads, mlp_ratio, dropout, norm="pre", norm_layer=LayerNorm, mlp_layer=Mlp):
        super().__init__()
        self.norm = norm
        self.attention_norm = norm_layer(dim)
        self.attention = Attention(dim, num_heads, dropout)
        self.mlp_norm = norm_layer(dim)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x, mask=None, look=None):
        if self.norm == "pre":
            x = x + self.attention(self.attention_norm(x), mask, look)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, mask, look))
        return self.mlp_norm(x + self.mlp(x))


def init_weights(module):
    """Embeddings and learned vectors N(0, .02), linear maps Xavier-uniform, biases 0, as MAGE. Use with `apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def learned(*shape):
    """A learned vector or table that is not a token table: positions, the mask vector."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=0.02))
