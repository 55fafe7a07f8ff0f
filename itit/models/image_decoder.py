"""The image decoder: parallel, over all image slots and the encoded text (paper sec. 3.1 and 7, as MAGE).

Shapes: B batch, N image tokens, K kept image tokens, S other slots, D width, C codebook.
"""

import torch
from torch import nn

from itit.models.encoder import key_mask
from itit.models.layers import Block, LayerNorm, Linear, TiedHead, learned
from itit.ops import computed_once, gelu, put_tokens, take_tokens


class ImageDecoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.embed_dim
        self.config = config
        self.embed = Linear(dim, dim)
        self.mask_vector = learned(dim)
        num_slots = config.num_image_tokens
        if config.image_decoder_sees_text:
            num_slots += config.num_text_tokens + config.class_token
        self.positions = learned(num_slots, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_ratio, config.dropout) for _ in range(config.image_decoder_depth)
        )
        self.norm = LayerNorm(dim)
        self.head_in = Linear(dim, dim)
        self.head_norm = LayerNorm(dim)
        self.head = TiedHead(config.codebook_size)

    def forward(self, image, other, kept, mask, text_mask):
        """Restores dropped tokens and decodes.

        Every masked slot, dropped or kept, starts as the same learned vector, so that training (dropped) and
        generation (nothing dropped) look alike.

        Args:
          image, other: float [B, K, D], [B, S, D], the encoder's output.
          kept, mask: int64 [B, K], bool [B, N] (True where masked).
          text_mask: bool [B, S].

        Returns:
          float32 [B, N, D], to be given to `features`.
        """
        num_tokens = mask.shape[1]
        x = put_tokens(self.embed(image).float(), kept, num_tokens)
        empty = mask if self.config.overwrite_kept_masked else put_tokens(torch.ones_like(image[..., :1]), kept,
                                                                          num_tokens)[..., 0] == 0  # fmt: skip
        x = torch.where(empty[..., None], self.mask_vector, x)
        key = None
        if self.config.image_decoder_sees_text:
            x = torch.cat([x, self.embed(other).float()], 1)  # [B, N + S, D]
            key = key_mask(num_tokens, text_mask) if self.config.text_key_mask else None
        x = x + self.positions
        for block in self.blocks:
            x = block(x, key)
        return self.norm(x[:, :num_tokens])

    def features(self, x, at=None):
        """What logits are linear in: float [B, N, D] -> float32 [B, N, D], or [B, K, D] at `at` int64 [B, K]."""
        if at is not None:
            x = take_tokens(x, at)
        return self.head_norm(gelu(self.head_in(x)))

    def logits(self, features, table):
        """float [B, N, D], code table [C, D] -> float32 [B, N, C]."""
        if self.config.detach_tied_table:
            table = table.detach()
        if not torch.is_grad_enabled():  # for gradients they are kept anyway
            features = computed_once(features.to(self.head.compute_dtype))
        return self.head(features, table)
