"""The text decoder: causal, with encoded image tokens as a prefix (paper sec. 3.1 and 7, as GIT).

The memory sees itself in both directions and never the text; text sees all of the memory and earlier text. There is
no cross-attention.

Shapes: B batch, M memory tokens, L text tokens, D width of the decoder, H heads, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import nn

from itit.models.cache import make_cache
from itit.models.layers import Block, Dropout, Embedding, LayerNorm, Linear, TiedHead, learned
from itit.ops import attend, join_heads, split_heads


class TextDecoder(nn.Module):
    repeated = ("step",)  # methods that a backend may compile

    def __init__(self, config):
        super().__init__()
        dim = config.text_decoder_dim
        self.config = config
        self.memory_in = Linear(config.embed_dim, dim)
        self.memory_norm = LayerNorm(dim)
        # A TPU keeps a table that a program casts itself in fast memory: by prediction 27 us a product, not 64.
        self.token_embed = Embedding(config.vocab_size, dim, cast_ahead=False)
        self.positions = learned(config.num_text_tokens, dim)
        self.text_norm = LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(dim, config.text_decoder_num_heads, config.mlp_ratio, config.dropout, config.text_decoder_norm)
            for _ in range(config.text_decoder_depth)
        )
        # After post-norm blocks the stream is normalised already.
        self.norm = LayerNorm(dim) if config.text_decoder_norm == "pre" else nn.Identity()
        self.head = TiedHead(config.vocab_size)

    def _embed(self, ids, positions):
        return self.dropout(self.text_norm(self.token_embed(ids) + positions))

    def forward(self, ids, memory=None, memory_mask=None):
        """Teacher forcing.

        Args:
          ids: int64 [B, L], BOS first.
          memory: float [B, M, encoder width], or None for plain language modelling.
          memory_mask: bool [B, M], True where it may be seen.

        Returns:
          float32 [B, L, V], logits of the token after each.
        """
        length = ids.shape[1]
        x = self._embed(ids, self.positions[:length])
        num_memory = 0
        if memory is not None:
            num_memory = memory.shape[1]
            x = torch.cat([self.memory_norm(self.memory_in(memory)), x], 1)  # [B, M + L, D]
        mask = prefix_causal_mask(num_memory, length, x.device)[None, None]
        if memory_mask is not None:
            mask = mask & F.pad(memory_mask, (0, length), value=True)[:, None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x[:, num_memory:]), self.token_embed.table())

    def start(self, memory, memory_mask):
        """Encodes the memory once. Returns the cache for `step`."""
        x = self.memory_norm(self.memory_in(memory))
        mask, heads, layers = memory_mask[:, None, None], self.config.text_decoder_num_heads, []

        def look(q, k, v):
            """Keeps a layer's keys and values, and looks at them."""
            layers.append((k, v))
            return join_heads(attend(*(split_heads(x, heads) for x in (q, k, v)), mask))

        for block in self.blocks:
            x = block(x, look=look)
        return make_cache(memory_mask, layers, self.config.num_text_tokens, heads)

    def step(self, ids, position, cache):
        """One token further.

        Args:
          ids: int64 [B], the token at `position` (BOS at 0).
          position: int64 [1].
          cache: from `start`; updated in place.

        Returns:
          float32 [B, V], logits of the token at `position + 1`.
        """
        x = self._embed(ids[:, None], self.positions[position])  # [B, 1, D]
        for layer, block in enumerate(self.blocks):
            x = block(x, look=cache.look(layer, position))
        return self.head(self.norm(x), self.token_embed.table())[:, 0]


def prefix_causal_mask(num_memory, length, device):
    """bool [M + L, M + L], True where a query (row) may look at a key (column)."""
    size = num_memory + length
    row, column = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)[None]
    return (column < num_memory) | ((row >= num_memory) & (column <= row))
