"""Random draws, each a function of (seed, step, part, name): a resumed run repeats them, nothing is stored.

Everything that draws takes a `noise(name, shape)` that returns uniform float32 in (0, 1); tests pass their own. The
first dimension is the rows of the batch; a number without any, of shape (), is the whole batch's. `Noise` is by torch's
generators; a backend may have another kind, with the same attributes.
"""

import functools
import hashlib

import torch

_TWISTER_AT, _TWISTER_WORDS = 24, 624  # where in a generator's bytes its words lie, 32 bits of 8 bytes each
SMALLEST = 2.0**-25  # half of the spacing of torch.rand: keeps the logarithms finite


def hashed(*words):
    """A number of 63 bits for any words."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch seeds are signed


def seed_generator(generator, *words):
    """Seeds one of torch's generators by all of the words. That of the processor, a Mersenne twister, looks at 32 bits
    of a seed, of which a run of some ten thousand draws would meet one twice: its whole state is drawn."""
    generator.manual_seed(hashed(*words))
    if generator.device == torch.default_generator.device:
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
      fused: dropout is left to torch's fused kernels, whose draws are no function of a row: not for all.
    """

    def __init__(self, seed, step, device, part=0, rows=None, share=(0, 1), fused=False):
        self.key = (seed, step, part)
        self.device, self.rows, self.share, self.fused = torch.device(device), rows, share, fused

    def __call__(self, name, shape):
        """Uniform float32 of this shape, in (0, 1)."""
        if self.rows is None:
            drawn = torch.empty(self._whole(shape), device=self.device)
            torch.rand(drawn.shape, generator=self._generator(name), out=drawn)
            return self._own(drawn, shape).clamp_(min=SMALLEST)
        drawn = torch.empty(shape, device=self.device)
        assert len(drawn) == len(self.rows)
        for place, row in enumerate(drawn):
            torch.rand(row.shape, generator=self._generator(name, place), out=row)
        return drawn.clamp_(min=SMALLEST)

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
        can be seeded in the middle of a recording, which must draw as the step that is run."""
        for _, dropout in dropouts(model):
            shared = self.share[1] > 1 and not self.fused
            dropout.noise = functools.partial(self._kept, dropout.rate) if shared else None
        if is_first:
            self.seed_dropout()

    def _kept(self, rate, name, shape):
        """What `F.dropout` of all rows keeps of these: 1, or 0 of what it drops; for a `Dropout` of that rate."""
        return self._own(torch.empty(self._whole(shape)).bernoulli_(1 - rate), shape)

    def seed_dropout(self):
        own = self.share[:1] if self.fused and self.share[0] else ()
        torch.manual_seed(hashed(*self.key, "dropout", *own))
        seed_generator(torch.default_generator, *self.key, "dropout")


def dropouts(model):
    """(name, `layers.Dropout`) of each that a model has."""
    return ((name, part) for name, part in model.named_modules() if hasattr(part, "num_calls"))


def gumbel(uniform):
    """Uniform in (0, 1) -> standard Gumbel."""
    return -torch.log(-torch.log(uniform))


def prefixed(noise, prefix):
    """The same noise under names that begin with `prefix`, so that two users of a name draw differently."""
    if hasattr(noise, "prefixed"):
        return noise.prefixed(prefix)
    return lambda name, shape: noise(f"{prefix}/{name}", shape)


def indexed(noise, index):
    """The same noise for a turn of a loop: `index` is an int, or an int64 [] on the device of a noise that takes it."""
    if hasattr(noise, "indexed"):
        return noise.indexed(index)
    return lambda name, shape: noise(f"{name}{index}", shape)
