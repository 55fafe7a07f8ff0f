"""Image tokenizer: a convolutional autoencoder whose grid of features is rounded to a codebook.

Source: the VQGAN of MaskGIT (arXiv:2202.04200, sec. 3.1; Muse's tokenizer is its kin), which the ITIT paper uses
(sec. 7): residual blocks with GroupNorm and swish, average-pool down, nearest-neighbour up, no attention, so that it
takes pictures of any content and stays cheap. The shortcut of a block that changes its width acts on the block's
input (in MaskGIT's own code it acts on the output; the public 8192-code checkpoints do as here).

Shapes: B batch, S picture side in pixels, G = S / (patch_size * 2 ** (levels - 1)) grid side, N = G * G image tokens in
row order, D code width, C codebook.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

NORM_EPS = 1e-6
MAX_NORM_GROUPS = 32
MIN_GROUP_CHANNELS = 4


def group_norm(channels):
    """GroupNorm with 32 groups, as MaskGIT; fewer in narrow layers.

    A group of one channel would lose that channel's mean, and with it the colour of plain areas.
    """
    groups = math.gcd(MAX_NORM_GROUPS, max(1, channels // MIN_GROUP_CHANNELS))
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=NORM_EPS)


class PositionNorm(nn.GroupNorm):
    """LayerNorm over the channels of each position of [B, C, G, G] by itself."""

    def __init__(self, channels):
        super().__init__(1, channels, eps=NORM_EPS)

    def forward(self, x):
        return F.layer_norm(x.movedim(1, -1), (self.num_channels,), self.weight, self.bias, self.eps).movedim(-1, 1)


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and swish, beside a shortcut (1x1 where the width changes).

    It begins as the shortcut alone, so that colour, which the network passes on linearly, is learned from the start.
    """

    returns_rows = True  # [B, ...]: a mesh keeps it split by rows

    def __init__(self, in_channels, out_channels, kernel=3, norm=group_norm):
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


class Upsample(nn.Module):
    """Nearest neighbour by two, then a 3x3 convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """Pictures [B, 3, S, S] -> features in the space of the codes [B, D, G, G]."""

    def __init__(self, config):
        super().__init__()
        width = config.channels
        kernel, norm = (1, PositionNorm) if config.local_encoder else (3, group_norm)
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, width, kernel, padding=kernel // 2)
        stages = []
        for level, multiplier in enumerate(config.channel_multipliers):
            if level > 0:
                stages.append(nn.AvgPool2d(2))
            for _ in range(config.num_res_blocks):
                stages.append(ResBlock(width, config.channels * multiplier, kernel, norm))
                width = config.channels * multiplier
        stages += [ResBlock(width, width, kernel, norm) for _ in range(config.num_res_blocks)]
        self.stages = nn.Sequential(*stages)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, config.latent_dim, 1)

    def forward(self, images):
        x = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        return self.conv_out(F.silu(self.norm_out(self.stages(x))))


class Decoder(nn.Module):
    """Codes [B, D, G, G] -> pictures [B, 3, S, S]."""

    def __init__(self, config):
        super().__init__()
        width = config.channels * config.channel_multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_dim, width, 3, padding=1)
        stages = [ResBlock(width, width) for _ in range(config.num_res_blocks)]
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for _ in range(config.num_res_blocks):
                stages.append(ResBlock(width, config.channels * multiplier))
                width = config.channels * multiplier
            if level > 0:
                stages.append(Upsample(width))
        self.stages = nn.Sequential(*stages)
        self.norm_out = group_norm(width)
        self.patch_size = config.patch_size
        self.conv_out = nn.Conv2d(width, 3 * config.patch_size**2, 3, padding=1)

    def forward(self, codes):
        x = self.stages(self.conv_in(codes))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)


class VQGAN(nn.Module):
    """`encode` and `decode` between pictures and ids; `encoder`, `quantize`, `decoder` are the parts to train.

    Pictures as floats run from `pixel_low` (black) to `pixel_high` (white) of the VqganConfig. A picture's ids depend
    on that picture alone, not on its batch.
    """

    def __init__(self, config):
        """Raises ValueError where patches and levels do not divide `image_size` evenly."""
        super().__init__()
        if config.image_size % config.factor:
            raise ValueError(
                f"image_size={config.image_size}: must be a multiple of {config.factor} for patches of "
                f"{config.patch_size} and {len(config.channel_multipliers)} channel_multipliers"
            )
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
        with torch.autocast(features.device.type, enabled=False):
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
        return self.encode(self.from_pixels(pixels))

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
    elif isinstance(module, ResBlock):
        nn.init.zeros_(module.conv2.weight)
