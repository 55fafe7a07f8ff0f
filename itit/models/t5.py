"""T5 v1.1 encoder, frozen, for token ids or for soft mixtures of token embeddings.

Architecture: arXiv:1910.10683 with the changes of v1.1 (gated GELU, no biases, untied). RMS norms before each branch,
unscaled attention with a relative position bias that all blocks share, no dropout. ITIT uses the XXL encoder for its
text features (paper sec. 7).

Shapes: B batch, L text tokens, D width, V vocabulary, H heads.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from itit.models.layers import GatedMlp, RMSNorm
from itit.ops import computed_once, flatten_heads, recomputed


class Attention(nn.Module):
    """Multi-head self-attention without scaling and biases; the initial weights take the scale's place."""

    def __init__(self, dim, num_heads, head_dim):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.key = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.value = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x, bias):
        """x [B, L, D], bias float32 [1 or B, H, L, L] added to the scores -> [B, L, D]."""
        # A compiler would give the heads their places in the products else, in nearly twice the time.
        q, k, v = (computed_once(project(x)) for project in (self.query, self.key, self.value))
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)) for y in (q, k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k).float() + bias
        seen = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).to(v.dtype), v)  # [B, L, H, head_dim]
        return self.out(flatten_heads(seen))


class Block(nn.Module):
    returns_rows = True  # [B, ...]: a mesh keeps it split by rows
    repeated = ("forward",)  # methods that a backend may compile

    def __init__(self, config):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config.dim, config.num_heads, config.head_dim)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = GatedMlp(config.dim, config.ff_dim, 0.0, functools.partial(F.gelu, approximate="tanh"), nn.Linear)

    def forward(self, x, bias):
        x = x + self.attention(self.attention_norm(x), bias)
        return x + self.mlp(self.mlp_norm(x))


class T5Encoder(nn.Module):
    """Text features. Frozen: no parameter takes a gradient, yet gradients flow through to `embeds`.

    `token_embed.weight` [V, D] is the table that a soft one-hot multiplies.
    """

    def __init__(self, config):
        """`config` is a resolved T5Config. The weights are for `init_weights` or `load_state_dict` to set."""
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.dim)
        self.position_bias = nn.Embedding(config.num_buckets, config.num_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.dim)
        buckets = torch.tensor(distance_buckets(config.num_buckets // 2, config.max_distance))
        self.register_buffer("distance_buckets", buckets, persistent=False)
        self.requires_grad_(False)

    def forward(self, ids=None, embeds=None, mask=None):
        """Features of every slot.

        Args:
          ids: int64 [B, L], or None where `embeds` is given.
          embeds: float [B, L, D], rows or mixtures of rows of `token_embed.weight`.
          mask: bool [B, L], True at real tokens; the others are hidden from attention. None: all are real.

        Returns:
          float [B, L, D]. Slots with mask False have finite, meaningless features; the caller drops them.
        """
        assert (ids is None) != (embeds is None), "give either ids or embeds"
        x = self.token_embed(ids) if embeds is None else embeds.to(self.token_embed.weight.dtype)
        bias = self._attention_bias(x.shape[1])
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], torch.finfo(bias.dtype).min)  # [B, H, L, L]
        for block in self.blocks:
            x = recomputed(x, block, bias)
        return self.final_norm(x)

    def _attention_bias(self, length):
        """float32 [1, H, L, L]: one learned number for each head and bucket of (key position - query position)."""
        positions = torch.arange(length, device=self.distance_buckets.device)
        offset = positions[None, :] - positions[:, None]  # [L, L]
        bucket = self.distance_buckets[offset.abs().clamp(max=self.config.max_distance)]
        bucket = bucket + (offset > 0) * (self.config.num_buckets // 2)
        return self.position_bias(bucket).float().permute(2, 0, 1)[None]

    @torch.no_grad()
    def init_weights(self, seed):
        """Initial weights much as T5's, drawn on the host in a fixed order: a seed gives the same ones everywhere."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                draw = torch.empty(parameter.shape).normal_(std=self._initial_std(name), generator=generator)
                parameter.copy_(draw)

    def _initial_std(self, name):
        c = self.config
        if name.startswith(("token_embed", "position_bias")):
            # T5 begins with a smaller bias and learns. This encoder never learns: its heads must look at certain
            # distances from the start, or its features would tell the words and hardly their order.
            return 1.0
        if name.endswith("query.weight"):
            return (c.dim * c.head_dim) ** -0.5
        if name.endswith("attention.out.weight"):
            return (c.num_heads * c.head_dim) ** -0.5
        if name.endswith("down.weight"):
            return c.ff_dim**-0.5
        return c.dim**-0.5


def distance_buckets(num_buckets, max_distance):
    """The bucket of each distance 0 .. max_distance: exact for the near half, logarithmic beyond, then the last one.

    Computed on the host, because the logarithm at a bucket's edge would round differently on different devices.
    """
    num_exact = num_buckets // 2
    buckets = list(range(num_exact))
    for distance in range(num_exact, max_distance + 1):
        share = math.log(distance / num_exact) / math.log(max_distance / num_exact)
        # The small number lifts exact powers, which may round to just below, onto the bucket that they open.
        buckets.append(min(num_exact + int(share * (num_buckets - num_exact) + 1e-9), num_buckets - 1))
    return buckets


def load(folder):
    """T5Encoder from a folder that tools.convert_t5 wrote. Raises ValueError, one line (see checkpoint/weights.py)."""
    from itit.checkpoint.weights import load_text_encoder  # reading needs more than torch; the networks do not

    return load_text_encoder(folder)
