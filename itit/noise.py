"""Random draws, each a function of (seed, step, part, name): a resumed run repeats them, nothing is stored.

Everything that draws takes a `noise(name, shape)` that returns uniform float32 in (0, 1); tests pass their own.
"""

import hashlib

import torch

_SMALLEST = 2.0**-25  # half of the spacing of torch.rand: keeps the logarithms finite


def _hash(*words):
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch seeds are signed


class Noise:
    """The draws of one part (microbatch) of one step."""

    def __init__(self, seed, step, device, part=0):
        self.key = (seed, step, part)
        self.device = torch.device(device)

    def __call__(self, name, shape):
        """Uniform float32 of this shape, in (0, 1)."""
        generator = torch.Generator(self.device).manual_seed(_hash(*self.key, name))
        return torch.rand(shape, generator=generator, device=self.device).clamp_(min=_SMALLEST)

    def seed_dropout(self):
        """Dropout draws from torch's own generators; seeds them for this part of this step."""
        torch.manual_seed(_hash(*self.key, "dropout"))


def gumbel(uniform):
    """Uniform in (0, 1) -> standard Gumbel."""
    return -torch.log(-torch.log(uniform))


def prefixed(noise, prefix):
    """The same noise under names that begin with `prefix`, so that two users of a name draw differently."""
    return lambda name, shape: noise(f"{prefix}/{name}", shape)
