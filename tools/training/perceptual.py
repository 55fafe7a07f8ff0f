"""Perceptual distance of pictures: LPIPS (arXiv:1801.03924) on the features of an image network from a file.

Two networks are known by the names of their tensors: SqueezeNet 1.0 in Caffe's form (arXiv:1602.07360; pictures as BGR
0 .. 255 less a mean) and VGG16 with torchvision's names (RGB 0 .. 1 less a mean, over a deviation), which the published
linear weights "vgg" of LPIPS are made for. Files are safetensors or npz.

Shapes: B batch, S picture side in pixels, K channels of a layer.
"""

import io
import re

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from itit import storage

MIN_SIDE = 32
EPS = 1e-10
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN_BGR = (104.0, 117.0, 123.0)
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
FIRES = {2: (96, 16, 64), 3: (128, 16, 64), 4: (128, 32, 128), 5: (256, 32, 128), 6: (256, 48, 192),
         7: (384, 48, 192), 8: (384, 64, 256), 9: (512, 64, 256)}  # fmt: skip


class Fire(nn.Module):
    """Narrow 1x1, then 1x1 and 3x3 side by side; ReLU after each."""

    def __init__(self, inputs, narrow, wide):
        super().__init__()
        self.conv1x1_1 = nn.Conv2d(inputs, narrow, 1)
        self.conv1x1_2 = nn.Conv2d(narrow, wide, 1)
        self.conv3x3_2 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.conv1x1_1(x))
        return F.relu(torch.cat([self.conv1x1_2(x), self.conv3x3_2(x)], 1))


class SqueezeNet(nn.Module):
    """float [B, 3, S, S] in [0, 1] -> the last features at each of its four resolutions."""

    first_key = "fire2.conv1x1_1.weight"
    widths = (96, 256, 512, 512)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        for number, sizes in FIRES.items():
            self.add_module(f"fire{number}", Fire(*sizes))
        self.register_buffer("mean", torch.tensor(CAFFE_MEAN_BGR).view(3, 1, 1), persistent=False)

    def forward(self, pictures):
        x = F.relu(self.conv1(pictures.flip(1) * 255 - self.mean))
        features = [x]
        for numbers in ((2, 3, 4), (5, 6, 7, 8), (9,)):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for number in numbers:
                x = getattr(self, f"fire{number}")(x)
            features.append(x)
        return features


class Vgg16(nn.Module):
    """float [B, 3, S, S] in [0, 1] -> the last features at each of its five resolutions, as LPIPS takes them."""

    first_key = "features.0.weight"
    widths = (64, 128, 256, 512, 512)

    def __init__(self):
        super().__init__()
        layers, width = [], 3
        for size in VGG16:
            if size == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, size, 3, padding=1), nn.ReLU()]
                width = size
        self.features = nn.Sequential(*layers)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, pictures):
        x, features = (pictures - self.mean) / self.std, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]


class Perceptual(nn.Module):
    """The distance. Frozen: no parameter takes a gradient, yet gradients flow through to the first picture.

    Args:
      network: with `widths`, pictures -> features.
      weights: for each of its layers float [K], not negative; None: all ones.
    """

    def __init__(self, network, weights=None):
        super().__init__()
        self.network = network
        for number, width in enumerate(network.widths):
            weight = torch.ones(width) if weights is None else weights[number]
            self.register_buffer(f"weight{number}", weight.view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, pictures, originals):
        """float [B, 3, S, S] in [0, 1] each -> float, 0-d: the mean distance. No gradient to `originals`."""
        with torch.no_grad():
            expected = self.network(originals)
        distance = pictures.new_zeros(())
        for number, (a, b) in enumerate(zip(self.network(pictures), expected, strict=True)):
            weight = getattr(self, f"weight{number}")
            difference = (unit(a) - unit(b)).square() * weight
            distance = distance + difference.sum(1).mean()
        return distance


def unit(features):
    """[B, K, ...] with vectors of length 1 along K; zero vectors stay zero."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + EPS)


def load(path, linear_path=""):
    """The Perceptual of a file with a network's weights and, where given, one with LPIPS's linear weights.

    Raises ValueError, one line: not such a file, no network that is known, a tensor that is absent or of other size.
    """
    tensors = read(path)
    kinds = [kind for kind in (SqueezeNet, Vgg16) if kind.first_key in tensors]
    if not kinds:
        known = " nor ".join(f"{kind.__name__} ({kind.first_key})" for kind in (SqueezeNet, Vgg16))
        raise ValueError(f"{path}: neither {known}; its first tensors are {', '.join(sorted(tensors)[:3])}")
    network = kinds[0]()
    for name, parameter in network.state_dict().items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            found = tuple(tensors[name].shape) if name in tensors else "absent"
            raise ValueError(f"{path}: {kinds[0].__name__}'s {name} must be {tuple(parameter.shape)}, is {found}")
        parameter.copy_(tensors[name])
    return Perceptual(network, _linear(linear_path, network.widths) if linear_path else None)


def _linear(path, widths):
    """The tensors lin0.model.1.weight, ... [1, K, 1, 1] of LPIPS, as [K] each."""
    tensors = {}
    for name, tensor in read(path).items():
        match = re.match(r"lin(\d+)\..*weight$", name)
        if match:
            tensors[int(match[1])] = tensor.flatten()
    found = [len(tensors[number]) for number in sorted(tensors)]
    if found != list(widths):
        raise ValueError(f"{path}: linear weights (lin0.model.1.weight, ...) of widths {found}, must be {list(widths)}")
    return [tensors[number] for number in sorted(tensors)]


def read(path):
    """name -> float32 tensor, of a safetensors or an npz file. Raises ValueError where it is neither."""
    data = storage.read_bytes(path)
    try:
        if data[:2] == b"PK":
            with np.load(io.BytesIO(data)) as arrays:
                return {name: torch.from_numpy(arrays[name]).float() for name in arrays}
        return {name: tensor.float() for name, tensor in safetensors.torch.load(data).items()}
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: neither safetensors nor npz: {error}") from None
