"""ITIT: the joint encoder and its two decoders (paper sec. 3.1, figure 2).

Shapes: B batch, N image tokens, K kept image tokens, L text tokens, S other slots (text, class token), D width,
F width of the text features, C codebook, V vocabulary. A `masking` holds `mask`, bool [B, N], True where masked, and
`kept`, int64 [B, K], the positions that the encoder sees.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from itit.models.encoder import Encoder
from itit.models.image_decoder import ImageDecoder
from itit.models.layers import init_weights
from itit.models.text_decoder import TextDecoder
from itit.ops import take_tokens
from itit.text_encoders import PAD


class Text(NamedTuple):
    """Text features float [B, L, F] and where words are, bool [B, L]."""

    features: torch.Tensor
    mask: torch.Tensor

    def expand(self, batch):
        return Text(*(x.expand(batch, *x.shape[1:]) for x in self))


class Encoded(NamedTuple):
    """The encoder's output: image [B, K, D], other slots [B, S, D] with their mask bool [B, S]."""

    image: torch.Tensor
    other: torch.Tensor
    other_mask: torch.Tensor


class ITITModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.image_decoder = ImageDecoder(config)
        self.text_decoder = TextDecoder(config)
        self.apply(init_weights)
        self.casts = {}  # name -> weight in the dtype of the products, inside `weights_cast`

    @property
    def mask_token_id(self):
        return self.config.codebook_size

    @property
    def code_table(self):
        """[C, D]: image tokens on the way in and, tied, the image decoder's output."""
        return self.encoder.token_embed.weight[: self.config.codebook_size]

    def embed(self, image_ids, masking):
        """int64 [B, N] -> float [B, K, D]: the kept tokens, [MASK] where they are masked."""
        masked = take_tokens(masking.mask, masking.kept)
        return self.encoder.token_embed(take_tokens(image_ids, masking.kept).masked_fill(masked, self.mask_token_id))

    def encode(self, image_embeds, masking, text):
        """float [B, K, D] (see `embed`), Text -> Encoded."""
        image, other = self.encoder(image_embeds, masking.kept, text.features, text.mask)
        other_mask = F.pad(text.mask, (1, 0), value=True) if self.config.class_token else text.mask
        return Encoded(image, other, other_mask)

    def decode_image(self, encoded, masking):
        """Encoded -> hidden states float32 [B, N, D] of every image slot, for `image_logits` or `image_features`."""
        return self.image_decoder(encoded.image, encoded.other, masking.kept, masking.mask, encoded.other_mask)

    def image_features(self, hidden, at=None):
        """What logits are linear in, float32 [B, N, D], or [B, K, D] at positions `at` int64 [B, K]."""
        return self.image_decoder.features(hidden, at)

    def logits_of(self, features):
        """float [B, N, D] (see `image_features`) -> float32 [B, N, C]."""
        return self.image_decoder.logits(features, self.encoder.token_embed.table(self.config.codebook_size))

    def image_logits(self, hidden, at=None):
        """float32 [B, N, C], or [B, K, C] at positions `at` int64 [B, K]."""
        return self.logits_of(self.image_features(hidden, at))

    def memory(self, encoded, masking):
        """What the text decoder may see: float [B, M, D] and bool [B, M]."""
        if self.config.text_memory == "visible":
            return encoded.image, ~take_tokens(masking.mask, masking.kept)
        x = encoded.image
        if self.config.text_memory == "all":
            x = torch.cat([x, encoded.other], 1)
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

    def text_logits(self, text_ids, encoded, masking):
        """Target ids int64 [B, L] -> logits float32 [B, L, V], each given the ids before it."""
        return self.text_decoder(self.shift(text_ids), *self.memory(encoded, masking))

    def shift(self, text_ids):
        """The decoder's input: BOS, then all targets but the last."""
        return F.pad(text_ids[:, :-1], (1, 0), value=self.config.bos_id)

    def empty_text(self, t5_of_nothing):
        """The empty text: Text of one row. `t5_of_nothing` is the Text of ids [EOS, PAD, ...]."""
        features, mask = t5_of_nothing
        if self.config.empty_text == "zeros":
            features = torch.zeros_like(features)
        if self.config.empty_text == "learned":
            rest = features.new_zeros(1, features.shape[1] - 1, features.shape[2])
            features = torch.cat([self.encoder.empty_text.expand(1, 1, -1).to(features.dtype), rest], 1)
        return Text(features, mask)


def encode_text(t5, text_ids):
    """Features of int64 [B, L] by the frozen text encoder: Text."""
    mask = text_ids != PAD
    with torch.no_grad():
        return Text(t5(ids=text_ids, mask=mask).float(), mask)
