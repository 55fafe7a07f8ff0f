"""What the text decoder keeps of the memory and of earlier text, and how one more token looks at it.

Of one size from the first token to the last. It gives, for a layer and a position, the `look` that `layers.Attention`
takes.

Shapes: B batch, M memory tokens, L text tokens, D width, H heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from itit.ops import attend, join_heads, op, split_heads


@op
def make_cache(memory_mask, layers, length, num_heads):
    """A cache with the memory in it and room for the text.

    Args:
      memory_mask: bool [B, M], True where it may be seen.
      layers: keys and values of each, float [B, M, D].
      length: L.
    """
    padded = [[F.pad(split_heads(x, num_heads), (0, 0, 0, length)) for x in layer] for layer in layers]
    return Cache(memory_mask, *map(list, zip(*padded, strict=True)), num_heads)


class Cache(NamedTuple):
    """`memory_mask`: bool [B, M]. `keys`, `values`: for each layer [B, H, M + L, D / H]."""

    memory_mask: torch.Tensor
    keys: list
    values: list
    num_heads: int

    def look(self, layer, position):
        """How a token at `position`, int64 [1], looks around: (q, k, v) [B, 1, D] -> [B, 1, D]. Keeps k and v."""
        mask, slot = self._mask(position), position + self.memory_mask.shape[1]

        def look(q, k, v):
            q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
            keys, values = self.keys[layer].index_copy_(2, slot, k), self.values[layer].index_copy_(2, slot, v)
            return join_heads(attend(q, keys, values, mask))

        return look

    def _mask(self, position):
        """bool [B, 1, 1, M + L]: visible memory, and text up to `position`."""
        batch, num_memory = self.memory_mask.shape
        text = torch.arange(self.keys[0].shape[2] - num_memory, device=position.device) <= position
        return torch.cat([self.memory_mask, text.expand(batch, -1)], 1)[:, None, None]

    def repeat(self, times):
        """A cache with every row so many times, one beside the other. For beam search."""
        keys, values = ([x.repeat_interleave(times, 0) for x in part] for part in (self.keys, self.values))
        return Cache(self.memory_mask.repeat_interleave(times, 0), keys, values, self.num_heads)

    def reorder(self, rows):
        """A cache whose row i goes on from the text of row `rows[i]`, int64 [B], which has the same memory."""
        num_memory = self.memory_mask.shape[1]
        for x in (*self.keys, *self.values):
            text = x[:, :, num_memory:]
            text.copy_(text.index_select(0, rows))
        return self
