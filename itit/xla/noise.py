"""Draws computed from counters: the same on every device, and from every position by itself.

A compiled step gets fresh draws by a new key, and a chip draws its rows alone (XLA's own generator draws the global
batch on every chip).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from itit.noise import SMALLEST, dropouts, hashed


def _everywhere(x):
    return x


class CounterNoise(NamedTuple):
    """The draws of one part of one step, with the attributes of `noise.Noise`.

    A number is a hash of (key, name, row, place in the row): two rounds of multiplying and shifting (the mixer
    "lowbias32" of C. Wellons' hash-prospector), with 64 bits of key and row worked in.

    `key`: int32 [2] on the device, see `counter_key`. `place` puts a fresh tensor [rows, ...] where its rows belong.
    `rows`: int32 [rows], numbers to count the rows by, as `Noise` has them; by default 0, 1, ...
    """

    key: torch.Tensor
    place: Callable = _everywhere
    prefix: str = ""
    rows: torch.Tensor | None = None

    def __call__(self, name, shape):
        """Uniform float32 of this shape, in (0, 1)."""
        word = hashed(self.prefix + name)
        low, high = _mix(self.key[0] ^ _int32(word)), _mix(self.key[1] ^ _int32(word >> 31))
        if not shape:
            return self._replace(rows=None)(name, (1,))[0]
        rows = self.rows
        if rows is None:
            rows = torch.arange(shape[0], dtype=torch.int32, device=self.key.device)
        assert len(rows) == shape[0]
        low, high = (self.place(_mix(rows * factor ^ k)) for factor, k in ((1, low), (0x3C6EF372, high)))  # [rows]
        ones = [1] * (len(shape) - 1)
        # Place in the row, put together from each dimension's: XLA keeps an arange as numbers in the program.
        cells = torch.zeros([1] * len(shape), dtype=torch.int32, device=self.key.device)
        for dim in range(1, len(shape)):
            places = torch.arange(shape[dim], dtype=torch.int32, device=self.key.device) * math.prod(shape[dim + 1 :])
            cells = cells + places.view(-1, *[1] * (len(shape) - 1 - dim))
        bits = _mix(cells ^ low.view(-1, *ones), high.view(-1, *ones))
        return self.place(_shift(bits, 8).float() * 2.0**-24).clamp(min=SMALLEST)

    def start_dropout(self, model, is_first=True):
        """Every dropout of the model draws from this noise, at each of its calls anew."""
        for name, dropout in dropouts(model):
            dropout.noise = self.prefixed(f"dropout/{name}")
            dropout.num_calls = 0

    def prefixed(self, prefix):
        return self._replace(prefix=f"{self.prefix}{prefix}/")

    def indexed(self, index):
        index = torch.as_tensor(index, device=self.key.device).to(torch.int32)
        return self._replace(key=_mix(self.key, _mix((index + 1) * 0x3C6EF372)))


def counter_key(seed, step, part=0):
    """The key of a `CounterNoise`: int32 [2], on the host."""
    word = hashed(seed, step, part)
    return torch.tensor([_int32(word), _int32(word >> 31)], dtype=torch.int32)


def _int32(word):
    """The low 32 bits, signed."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _shift(x, bits):
    """Shifts int32 right and fills with zeros, which torch's shift does not (and its >> divides, on XLA)."""
    return torch.bitwise_right_shift(x, x.new_full((), bits)) & ((1 << (32 - bits)) - 1)


def _mix(x, middle=0):
    """Each bit of int32 `x`, and of `middle` worked in half way, changes half of the bits of the result."""
    x = (x ^ _shift(x, 16)) * 0x7FEB352D
    x = x ^ middle
    x = (x ^ _shift(x, 15)) * _int32(0x846CA68B)
    return x ^ _shift(x, 16)
