"""Random draws, each a function of (seed, step, part, name): a resumed run repeats them, nothing is stored.

Everything that draws takes a `noise(name, shape)` that returns uniform float32 in (0, 1); tests pass their own. The
first dimension is the rows of the batch; a number without any, of shape (), is the whole batch's. `Noise` is torch's
generator, fastest on processors and GPUs. `CounterNoise` computes the same numbers on every device and from every
position by itself, for XLA: a compiled step gets fresh draws by a new key, and a chip draws its rows alone (XLA's own
generator draws the global batch on every chip).
"""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

_TWISTER_AT, _TWISTER_WORDS = 24, 624  # where in a generator's bytes its words lie, 32 bits of 8 bytes each
_SMALLEST = 2.0**-25  # half of the spacing of torch.rand: keeps the logarithms finite


def _hash(*words):
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch seeds are signed


def seed_generator(generator, *words):
    """Seeds one of torch's generators by all of the words. That of the processor, a Mersenne twister, looks at 32 bits
    of a seed, of which a run of some ten thousand draws would meet one twice: its whole state is drawn."""
    generator.manual_seed(_hash(*words))
    if generator.device.type == "cpu":
        drawn = hashlib.shake_256(repr(words).encode()).digest(4 * _TWISTER_WORDS)
        state = generator.get_state()
        table = state[_TWISTER_AT : _TWISTER_AT + 8 * _TWISTER_WORDS].view(torch.int64)
        table.copy_(torch.frombuffer(bytearray(drawn), dtype=torch.int32).long() & 0xFFFFFFFF)
        generator.set_state(state)


class Noise:
    """The draws of one part (microbatch) of one step.

    Args:
      rows: numbers, one a row of what is drawn: each row is then a function of its number, whatever is beside it.
      share: (index, count): what is asked for are this one's of the rows that `count` processes have in equal parts. It
        draws for all, as one process would, and keeps its own.
    """

    def __init__(self, seed, step, device, part=0, rows=None, share=(0, 1)):
        self.key = (seed, step, part)
        self.device, self.rows, self.share = torch.device(device), rows, share

    def __call__(self, name, shape):
        """Uniform float32 of this shape, in (0, 1)."""
        if self.rows is None:
            drawn = torch.empty(self._whole(shape), device=self.device)
            torch.rand(drawn.shape, generator=self._generator(name), out=drawn)
            return self._own(drawn, shape).clamp_(min=_SMALLEST)
        drawn = torch.empty(shape, device=self.device)
        assert len(drawn) == len(self.rows)
        for place, row in enumerate(drawn):
            torch.rand(row.shape, generator=self._generator(name, place), out=row)
        return drawn.clamp_(min=_SMALLEST)

    def _whole(self, shape):
        """What all processes together draw, where this one asks for that shape."""
        return (shape[0] * self.share[1], *shape[1:]) if shape else ()

    def _own(self, drawn, shape):
        index, count = self.share
        return drawn.view(-1, *shape)[index].clone() if shape and count > 1 else drawn  # the rest is not kept

    def _generator(self, name, place=None):
        """The generator of a draw, or of the row at a place of it."""
        generator = torch.Generator(self.device)
        self._seed(generator, name, place)
        return generator

    def _seed(self, generator, name, place):
        seed_generator(generator, *self.key, name, *([] if place is None else [self.rows[place]]))

    def start_dropout(self, model, is_first=True):
        """Dropout draws from torch's own generators. The first part of a step seeds them, and the others go on: none
        can be seeded in the middle of a recording (see cuda_graphs.py), which must draw as the step that is run.

        On processors, one of several processes draws for the rows of all here, too. Elsewhere it would give up torch's
        fused kernels for that, whose draws are no function of a row: there each process has dropout of its own.
        """
        for _, dropout in _dropouts(model):
            shared = self.share[1] > 1 and self.device.type == "cpu"
            dropout.noise = functools.partial(self._kept, dropout.rate) if shared else None
        if is_first:
            self.seed_dropout()

    def _kept(self, rate, name, shape):
        """What `F.dropout` of all rows keeps of these: 1, or 0 of what it drops; for a `Dropout` of that rate."""
        return self._own(torch.empty(self._whole(shape)).bernoulli_(1 - rate), shape)

    def seed_dropout(self):
        own = () if self.device.type == "cpu" or not self.share[0] else self.share[:1]
        torch.manual_seed(_hash(*self.key, "dropout", *own))
        seed_generator(torch.default_generator, *self.key, "dropout")


class RepeatedNoise(Noise):
    """The draws of `Noise` for a function that is run once, then recorded and replayed (see cuda_graphs.py).

    A recorded draw goes on with the generator that it was recorded with: `restart` seeds them all anew.
    """

    def __init__(self, noise):
        super().__init__(*noise.key[:2], noise.device, noise.key[2], noise.rows, noise.share)
        self._seeds_dropout = False
        self._draws, self._next = [], None  # (name, place, generator) of each; the next one, once they are repeated

    @property
    def generators(self):
        return [generator for _, _, generator in self._draws]

    def restart(self, noise):
        """Draws as that `Noise` would."""
        self.key, self.rows, self._next = noise.key, noise.rows, 0
        for name, place, generator in self._draws:
            self._seed(generator, name, place)
        if self._seeds_dropout:
            super().seed_dropout()

    def seed_dropout(self):
        if self._next is None:
            self._seeds_dropout = True
            super().seed_dropout()

    def _generator(self, name, place=None):
        if self._next is None:
            self._draws.append((name, place, super()._generator(name, place)))
            return self._draws[-1][-1]
        *known, generator = self._draws[self._next]
        assert known == [name, place], f"draws {name} where it drew {known[0]} before"
        self._next += 1
        return generator


def _everywhere(x):
    return x


class CounterNoise(NamedTuple):
    """Draws computed from counters: the same on every device, however it is split.

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
        word = _hash(self.prefix + name)
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
        return self.place(_shift(bits, 8).float() * 2.0**-24).clamp(min=_SMALLEST)

    def start_dropout(self, model, is_first=True):
        """Every dropout of the model draws from this noise, at each of its calls anew."""
        for name, dropout in _dropouts(model):
            dropout.noise = prefixed(self, f"dropout/{name}")
            dropout.num_calls = 0


def counter_key(seed, step, part=0):
    """The key of a `CounterNoise`: int32 [2], on the host."""
    word = _hash(seed, step, part)
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


def _dropouts(model):
    return ((name, part) for name, part in model.named_modules() if hasattr(part, "num_calls"))


def gumbel(uniform):
    """Uniform in (0, 1) -> standard Gumbel."""
    return -torch.log(-torch.log(uniform))


def prefixed(noise, prefix):
    """The same noise under names that begin with `prefix`, so that two users of a name draw differently."""
    if isinstance(noise, CounterNoise):
        return noise._replace(prefix=f"{noise.prefix}{prefix}/")
    return lambda name, shape: noise(f"{prefix}/{name}", shape)


def indexed(noise, index):
    """The same noise for a turn of a loop: `index` is an int, or for `CounterNoise` also an int64 [] on its device."""
    if isinstance(noise, CounterNoise):
        index = torch.as_tensor(index, device=noise.key.device).to(torch.int32)
        return noise._replace(key=_mix(noise.key, _mix((index + 1) * 0x3C6EF372)))
    return lambda name, shape: noise(f"{name}{index}", shape)
