"""The joint image-text encoder: a ViT over kept image tokens and text slots (paper sec. 3.1 and 7).

Shapes: B batch, N image tokens, K kept image tokens, L text tokens, S other slots (L, plus 1 with a class token),
D width, F width of the text features, C codebook.
"""

import torch
import torch.nn.functional as F
from torch import nn

from itit.models.layers import Block, Dropout, Embedding, LayerNorm, Linear, learned
from itit.ops import lookup


class Encoder(nn.Module):
    """Kept image tokens, at their own positions, and text features -> features of both."""

    def __init__(self, config):
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.token_embed = Embedding(config.codebook_size + 1, dim, cast_ahead=True)  # the last row is [MASK]
        self.image_positions = learned(config.num_image_tokens, dim)
        self.image_norm = LayerNorm(dim)
        self.dropout = Dropout(config.dropout)
        # No bias: PAD slots are zeros, whose LayerNorm would send the bias a thousandfold gradient.
        self.text_in = Linear(config.text_feature_dim, dim, bias=False)
        self.text_norm = LayerNorm(dim)
        if config.text_positions:
            self.text_positions = learned(config.num_text_tokens, dim)
        if config.class_token:
            self.class_token = learned(dim)
        if config.empty_text == "learned":
            self.empty_text = learned(config.text_feature_dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.dropout) for _ in range(config.depth)
        )
        self.norm = LayerNorm(dim)

    def embed_text(self, features, mask):
        """float [B, L, F], bool [B, L] (True at words) -> the other slots [B, S, D] and their key mask [B, S]."""
        x = self.text_norm(self.text_in(features * mask[..., None]))  # PAD slots are zero-filled, not hidden
        if self.config.text_positions:
            x = x + self.text_positions
        if self.config.class_token:
            x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], 1)
            mask = F.pad(mask, (1, 0), value=True)
        return x, mask

    def forward(self, image_embeds, kept, features, text_mask):
        """Encodes.

        Args:
          image_embeds: float [B, K, D], rows of `token_embed` (or their soft mixture), without positions.
          kept: int64 [B, K], the position of each.
          features, text_mask: float [B, L, F], bool [B, L].

        Returns:
          float32 [B, K, D] and [B, S, D].
        """
        x = self.dropout(self.image_norm(image_embeds + lookup(self.image_positions, kept)))
        text, text_mask = self.embed_text(features, text_mask)
        x = torch.cat([x, text], 1)  # [B, K + S, D]
        mask = key_mask(kept.shape[1], text_mask) if self.config.text_key_mask else None
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x).split([kept.shape[1], text.shape[1]], 1)


def key_mask(num_image_tokens, text_mask):
    """Lets every query see all image tokens and the text slots that hold words: bool [B, 1, 1, T]."""
    return F.pad(text_mask, (num_image_tokens, 0), value=True)[:, None, None]
