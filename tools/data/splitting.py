"""Which items become pairs, held-out pairs, unpaired pictures or unpaired texts: pure functions of a seed and the ids.

As in the paper (sec. 4.1): of the pairs that are taken apart, one half gives its pictures and the other its texts, so
that no picture is there with a text of its own.
"""

import hashlib
import math
from typing import NamedTuple

SPLITS = {"paired": ("image", "text"), "held_out": ("image", "text"), "images": ("image",), "texts": ("text",)}
HOLDS = SPLITS | {None: ()}  # also of what goes nowhere


class Limits(NamedTuple):
    """Of the draws "sample" of pairs: those up to `sample` stay pairs, those above `held_out` are held out. None: all
    stay, none is held out."""

    sample: int | None = None
    held_out: int | None = None


def draw(seed, purpose, unit):
    """A number from 0 to 2**64 - 1 for each unit, as good as random; independent for each purpose."""
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8,
                                          key=f"{seed} {purpose}".encode()).digest(), "little")  # fmt: skip


def limits(total, count, share, draw_of):
    """The Limits of a set.

    Args:
      total: distinct draws of its pairs; rows of one unit draw alike.
      count: pairs that stay; 0: all that are not held out.
      share: of the pairs that is held out, rounded up.
      draw_of: n -> the n-th of the draws, from 1, the least first.

    Raises ValueError where there are not so many.
    """
    if count > total:
        raise ValueError(f"--paired_sample={count}: must be at most {total}, the pairs that there are")
    left = total - math.ceil(share * total)
    if share and left < max(1, count):
        raise ValueError(f"--held_out={share}: leaves {left} of {total} pairs, must leave at least {max(1, count)}")
    return Limits(draw_of(count) if count else None, draw_of(left) if share else None)


def split_of(item, seed, limits, halves):
    """Where an item goes: a key of SPLITS, or None.

    Args:
      limits: `Limits`.
      halves: pairs that are neither held out nor in the sample (without one: all) are halved; else they go nowhere.
    """
    if not item.image or not item.texts:
        return "images" if item.image else "texts"
    unit = item.unit or item.key
    number = draw(seed, "sample", unit) if limits != Limits() else 0
    if limits.held_out is not None and number > limits.held_out:
        return "held_out"
    if limits.sample is not None and number <= limits.sample:
        return "paired"
    if halves:
        return ("images", "texts")[draw(seed, "halves", unit) & 1]
    return "paired" if limits.sample is None else None
