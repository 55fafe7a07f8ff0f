"""The TPU chips that can be compiled for, and how a slice of them is wired: `Topology`. Pure Python.

Figures of a chip: memory and arithmetic from Cloud TPU's pages (cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e), links
from "How to Scale Your Model", part 2 (jax-ml.github.io/scaling-book/tpus), wiring from both.
"""

import dataclasses
import functools
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    hbm_gib: memory. usable_gib: what the compiler leaves to a program (from its own refusals). peak_flops: bf16 FLOP/s.
    mhz: clock of the compiler's cycles. link_bytes: bytes/s of one link, one way. num_axes: of the torus, each with a
    link in both directions. wrap: an axis closes to a ring where its length is a multiple of this. accelerator, config:
    what the compiler calls a host's chips, and two cores run as one.
    """

    hbm_gib: float
    usable_gib: float
    peak_flops: float
    mhz: float
    link_bytes: float
    num_axes: int
    wrap: int
    accelerator: str
    config: str


# The clock is peak_flops over what the matrix units do a cycle: for v4 two cores of four units of 128 x 128, two FLOPs
# each, which gives the 1050 MHz of arXiv:2304.01433 (table 4); v5p likewise; v5e has one such core; v6e does twice as
# much as v4 a cycle, taken from what the compiler expects of a large product (78 % of it; 92 to 94 % on the others).
CHIPS = {
    "v4": Chip(32, 30.75, 275e12, 1050, 45e9, 3, 4, "v4-8", "megacore"),
    "v5e": Chip(16, 15.75, 197e12, 1500, 50e9, 2, 16, "v5litepod-4", "default"),
    "v5p": Chip(95, 95.74, 459e12, 1750, 100e9, 3, 4, "v5p-8", "megacore"),
    "v6e": Chip(32, 31.25, 918e12, 1750, 100e9, 2, 16, "v6e-4", "default"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: kind of chip, and chips along each axis. Device ids run along the first axis first."""

    kind: str
    shape: tuple[int, ...]

    @classmethod
    def parse(cls, text):
        """`v4:8x8x4` -> Topology. Raises ValueError, one line."""
        match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
        kinds = ", ".join(CHIPS)
        if not match or match[1] not in CHIPS:
            raise ValueError(f"--topology={text}: must be KIND:AxB or KIND:AxBxC, the kind one of {kinds}")
        shape, axes = tuple(int(n) for n in match[2].split("x")), CHIPS[match[1]].num_axes
        if len(shape) != axes or 0 in shape:
            such = f"{match[1]}:{'x'.join('221'[:axes])}"
            raise ValueError(f"--topology={text}: a {match[1]} slice has {axes} axes, such as {such}")
        return cls(match[1], shape)

    def __str__(self):
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self):
        return CHIPS[self.kind]

    @functools.cached_property
    def num_chips(self):
        return math.prod(self.shape)

    def is_ring(self, axis):
        """Whether an axis has the link from its last chip to its first."""
        return self.shape[axis] % self.chip.wrap == 0

    def coordinates(self, device):
        """Device id -> its place along each axis."""
        place = []
        for size in self.shape:
            place.append(device % size)
            device //= size
        return tuple(place)
