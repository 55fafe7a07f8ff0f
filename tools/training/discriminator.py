"""The discriminator of the tokenizer's training, and the losses between the two.

A residual network that blurs before it drops pixels, as StyleGAN2's (arXiv:1912.04958, without its layer over the
batch: a picture's score depends on that picture alone); non-saturating losses (arXiv:1406.2661) and the gradient
penalty R1 (arXiv:1801.04406) on real pictures.

Shapes: B batch, S picture side in pixels.
"""

import torch
import torch.nn.functional as F
from torch import nn

SLOPE = 0.2
BLUR = (1, 3, 3, 1)
MAX_MULTIPLIER = 8  # width of the deepest levels over that of the first
LAST_SIDE = 4


class Discriminator(nn.Module):
    """float [B, 3, S, S] in [-1, 1] -> float [B], above 0 for real."""

    def __init__(self, image_size, channels):
        """`channels`: width of the first level. It doubles from level to level up to eight times, down to side 4."""
        super().__init__()
        self.conv_in = nn.Conv2d(3, channels, 1)
        width, side, blocks = channels, image_size, []
        while side > LAST_SIDE and side % 2 == 0:
            wider = min(2 * width, MAX_MULTIPLIER * channels)
            blocks.append(ResBlock(width, wider))
            width, side = wider, side // 2
        self.blocks = nn.Sequential(*blocks)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        self.hidden = nn.Linear(width * side * side, width)
        self.score = nn.Linear(width, 1)
        self.apply(_init_weights)

    def forward(self, pictures):
        x = self.blocks(F.leaky_relu(self.conv_in(pictures), SLOPE))
        x = F.leaky_relu(self.conv_out(x), SLOPE)
        return self.score(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))[:, 0]


class ResBlock(nn.Module):
    """Two convolutions, the second after a blur that halves the sides, beside a shortcut; keeps the variance."""

    returns_rows = True  # [B, ...]: a mesh keeps it split by rows

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        kernel = torch.tensor(BLUR, dtype=torch.float32)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        self.register_buffer("blur", kernel.repeat(in_channels, 1, 1, 1), persistent=False)

    def forward(self, x):
        y = F.leaky_relu(self.conv1(x), SLOPE)
        y = F.leaky_relu(self.conv2(self._halve(y)), SLOPE)
        return (self.shortcut(self._halve(x)) + y) * 0.5**0.5

    def _halve(self, x):
        return F.conv2d(x, self.blur, stride=2, padding=1, groups=x.shape[1])


def generator_loss(fake):
    """How far scores [B] of drawn pictures are from passing for real; float, 0-d."""
    return F.softplus(-fake).mean()


def discriminator_loss(real, fake):
    """How far scores [B] of real and [B] of drawn pictures are from telling them apart; float, 0-d."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def gradient_penalty(scores, pictures):
    """R1: the mean over the batch of the squared norm of the gradient of a score by its picture.

    Args:
      scores: float [B], computed from `pictures`, float [B, 3, S, S] that requires a gradient.

    Returns:
      float, 0-d, which can be differentiated by the discriminator's weights.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), pictures, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def _init_weights(module):
    """As He et al. (arXiv:1502.01852) for this slope; no biases; the last layer small, so that the two begin even."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Discriminator):
        nn.init.normal_(module.score.weight, std=module.score.in_features**-0.5)
