"""Image tokenizer: a convolutional autoencoder whose grid of features is rounded to a codebook.

Source: the VQGAN of MaskGIT (arXiv:2202.04200, sec. 3.1; Muse's tokenizer is its kin), which the ITIT paper uses
(sec. 7): residual blocks with GroupNorm and swish, average-pool down, nearest-neighbour up, no attention, so that it
takes pictures of any content and stays cheap. `VqganConfig.family` says how public tokenizers differ from that:

- plain: as above; the shortcut of a block that changes its width acts on the block's input.
- maskgit: the shortcut acts on the block's output, as in MaskGIT's own code, its ports, and MAGE's tokenizer.
- taming: as arXiv:2012.09841, openMUSE's 8192 codes and aMUSEd: convolutions go down, shortcuts have a bias, the middle
  two blocks, the decoder one block more a level, and 1x1 convolutions stand before and after the rounding.

Shapes: B batch, S picture side in pixels, G = S / (patch_size * 2 ** (levels - 1)) grid side, N = G * G image tokens in
row order, D code width, C codebook.
"""

import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from itit.ops import enlarge, no_autocast

NORM_EPS = 1e-6
MAX_NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 4


def group_norm(channels, num_groups=0):
    """GroupNorm of `num_groups`, or with 32 groups, as MaskGIT, and fewer in narrow layers.

    A group of one channel would lose that channel's mean, and with it the colour of plain areas.
    """
    groups = math.gcd(MAX_NORM_GROUPS, max(1, channels // MIN_GROUP_CHANNELS))
    return nn.GroupNorm(num_groups or math.gcd(groups, channels), channels, eps=NORM_EPS)


class PositionNorm(nn.GroupNorm):
    """LayerNorm over the channels of each position of [B, C, G, G] by itself."""

    def __init__(self, channels):
        super().__init__(1, channels, eps=NORM_EPS)

    def forward(self, x):
        return F.layer_norm(x.movedim(1, -1), (self.num_channels,), self.weight, self.bias, self.eps).movedim(-1, 1)


def _norm(config, local=False):
    """Number of channels -> norm. A local one mixes no positions."""
    return PositionNorm if local else functools.partial(group_norm, num_groups=config.norm_groups)


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and swish, beside a shortcut (1x1 where the width changes).

    It begins as the shortcut alone, so that colour, which the network passes on linearly, is learned from the start.
    """

    returns_rows = True  # [B, ...]: a mesh keeps it split by rows

    def __init__(self, in_channels, out_channels, config, local=False):
        super().__init__()
        kernel, norm, same = 1 if local else 3, _norm(config, local), in_channels == out_channels
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)
        self.shortcut_of_branch = config.family == "maskgit" and not same
        seen = out_channels if self.shortcut_of_branch else in_channels
        bias = config.family == "taming"
        self.shortcut = nn.Identity() if same else nn.Conv2d(seen, out_channels, 1, bias=bias)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(y if self.shortcut_of_branch else x) + y


class Attention(nn.Module):
    """Attention of one head among all positions of [B, C, G, G], beside the identity."""

    def __init__(self, channels, config):
        super().__init__()
        self.norm = _norm(config)(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (part(y).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))  # [B, G * G, C]
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """A 3x3 convolution at every other position, with zeros beyond the right and the lower edge alone."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour by two, then a 3x3 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(enlarge(x))


def _level(config, level, width, num_blocks, local=False):
    """The blocks of one level, which begin with `width` channels."""
    stages, out_channels = [], config.channels * config.channel_multipliers[level]
    for _ in range(num_blocks):
        stages.append(ResBlock(width, out_channels, config, local))
        if level in config.attention_levels:
            stages.append(Attention(out_channels, config))
        width = out_channels
    return stages


def _middle(config, width, local=False):
    """The blocks between encoder and decoder, on either side of the codes."""
    first, *rest = (ResBlock(width, width, config, local) for _ in range(num_middle_blocks(config)))
    return [first, *([Attention(width, config)] if config.middle_attention else []), *rest]


def num_middle_blocks(config):
    return 2 if config.family == "taming" else config.num_res_blocks


class Encoder(nn.Module):
    """Pictures [B, 3, S, S] -> features in the space of the codes [B, D, G, G].

    A local one has 1x1 convolutions and norms over channels: equal squares of pixels get equal features.
    """

    def __init__(self, config):
        super().__init__()
        width, local, taming = config.channels, config.local_encoder, config.family == "taming"
        kernel = 1 if local else 3
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, width, kernel, padding=kernel // 2)
        stages = []
        for level, multiplier in enumerate(config.channel_multipliers):
            if level > 0:
                stages.append(Downsample(width) if taming else nn.AvgPool2d(2))
            stages += _level(config, level, width, config.num_res_blocks, local)
            width = config.channels * multiplier
        self.stages = nn.Sequential(*stages, *_middle(config, width, local))
        self.norm_out = _norm(config, local)(width)
        if taming:
            self.conv_out = nn.Conv2d(width, config.bottleneck_dim, 3, padding=1)
            self.to_codes = nn.Conv2d(config.bottleneck_dim, config.latent_dim, 1)
        else:
            self.conv_out = nn.Conv2d(width, config.latent_dim, 1)
            self.to_codes = nn.Identity()

    def forward(self, images):
        x = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        return self.to_codes(self.conv_out(F.silu(self.norm_out(self.stages(x)))))


class Decoder(nn.Module):
    """Codes [B, D, G, G] -> pictures [B, 3, S, S]."""

    def __init__(self, config):
        super().__init__()
        width, taming = config.channels * config.channel_multipliers[-1], config.family == "taming"
        bottleneck = config.bottleneck_dim if taming else config.latent_dim
        self.from_codes = nn.Conv2d(config.latent_dim, bottleneck, 1) if taming else nn.Identity()
        self.conv_in = nn.Conv2d(bottleneck, width, 3, padding=1)
        stages = _middle(config, width)
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            stages += _level(config, level, width, config.num_res_blocks + taming)
            width = config.channels * multiplier
            if level > 0:
                stages.append(Upsample(width))
        self.stages = nn.Sequential(*stages)
        self.norm_out = _norm(config)(width)
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, codes):
        x = self.stages(self.conv_in(self.from_codes(codes)))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)


class VQGAN(nn.Module):
    """`encode` and `decode` between pictures and ids; `encoder`, `quantize`, `decoder` are the parts to train.

    Pictures as floats run from `pixel_low` (black) to `pixel_high` (white) of the VqganConfig. A picture's ids depend
    on that picture alone, not on its batch. `tokenize` fills a batch up to a multiple of `row_multiple`, which a mesh
    sets.
    """

    row_multiple = 1

    def __init__(self, config):
        """Raises ValueError, one line, for sizes that make no network and for an impossible range of pixels."""
        super().__init__()
        _check(config)
        self.config = config
        self.encoder = Encoder(config)
        self.codebook = nn.Embedding(config.codebook_size, config.latent_dim)
        self.decoder = Decoder(config)
        self.apply(_init_weights)

    def quantize(self, features):
        """float [B, D, G, G] -> (ids int64 [B, N], codes [B, D, G, G]): the nearest rows of the codebook (L2)."""
        flat = features.float().flatten(2).transpose(1, 2)  # [B, N, D]
        table = self.codebook.weight.float()
        # Half precision would confuse neighbouring codes, so autocast is off. |x|^2 is the same for every code.
        with no_autocast(features):
            distance = table.square().sum(-1) - 2 * flat @ table.T  # [B, N, C]
        ids = distance.argmin(-1)
        return ids, self._codes(ids)

    def encode(self, images):
        """float [B, 3, S, S] -> ids int64 [B, N] in [0, C)."""
        return self.quantize(self.encoder(images))[0]

    def decode(self, ids):
        """ids int64 [B, N] in [0, C) -> float [B, 3, S, S], not clipped."""
        return self.decoder(self._codes(ids))

    def tokenize(self, pixels):
        """uint8 [B, S, S, 3] -> ids int64 [B, N]."""
        filled = F.pad(pixels, (0, 0, 0, 0, 0, 0, 0, -len(pixels) % self.row_multiple))
        return self.encode(self.from_pixels(filled))[: len(pixels)]

    def to_pixels(self, ids):
        """ids int64 [B, N] -> uint8 [B, S, S, 3], clipped and rounded."""
        low, high = self.config.pixel_low, self.config.pixel_high
        unit = ((self.decode(ids).float() - low) / (high - low)).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def from_pixels(self, pixels):
        """uint8 [B, S, S, 3] -> float [B, 3, S, S] between `pixel_low` and `pixel_high`."""
        low, high = self.config.pixel_low, self.config.pixel_high
        return pixels.permute(0, 3, 1, 2).float() / 255 * (high - low) + low

    def _codes(self, ids):
        """ids int64 [B, N] -> [B, D, G, G]."""
        grid = math.isqrt(ids.shape[1])
        return self.codebook(ids).transpose(1, 2).unflatten(2, (grid, grid))


def _init_weights(module):
    """Convolutions keep the variance of what they see (as MaskGIT), without bias; called on parts before wholes."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ResBlock) and not module.shortcut_of_branch:
        nn.init.zeros_(module.conv2.weight)


def _check(v):
    families = next(field for field in dataclasses.fields(v) if field.name == "family").metadata["choices"]
    widths = [v.channels * multiplier for multiplier in v.channel_multipliers]
    levels = range(len(widths))
    mixing = v.family == "taming" or v.attention_levels or v.middle_attention
    rules = [
        (v.family in families, "family", f"one of {', '.join(families)}"),
        (widths and min(widths) > 0, "channel_multipliers", "one positive number a level"),
        (v.patch_size > 0 and v.num_res_blocks > 0, "num_res_blocks", "at least 1, as patch_size"),
        (v.factor > 0 and v.image_size > 0 and v.image_size % v.factor == 0, "image_size",
         f"a multiple of {v.factor} for patches of {v.patch_size} and {len(widths)} channel_multipliers"),
        (set(v.attention_levels) <= set(levels), "attention_levels", f"in {list(levels)}"),
        (v.norm_groups >= 0 and not any(w % v.norm_groups for w in [v.channels, *widths] if v.norm_groups),
         "norm_groups", f"0 or a divisor of the widths {sorted({v.channels, *widths})}"),
        (not (v.local_encoder and mixing), "local_encoder",
         "false with attention and in the family taming, which mix positions"),
        (v.codebook_size >= 2, "codebook_size", "at least 2"),
        (v.pixel_low < v.pixel_high and math.isfinite(v.pixel_high - v.pixel_low), "pixel_low",
         f"finite and below pixel_high={v.pixel_high}"),
    ]  # fmt: skip
    for good, name, allowed in rules:
        if not good:
            raise ValueError(f"{name}={getattr(v, name)}: must be {allowed}")
