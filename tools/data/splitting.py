"""Which items become pairs, held-out pairs, unpaired pictures or unpaired texts: pure functions of a seed and the ids.

As in the paper (sec. 4.1): of the pairs that are taken apart, one half gives its pictures and the other its texts, so
that no picture is there with a text of its own.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

SPLITS = {"paired": ("image", "text"), "held_out": ("image", "text"), "images": ("image",), "texts": ("text",)}


class Limits(NamedTuple):
    """Of the draws "sample" of pairs: those up to `sample` stay pairs, those above `held_out` are held out. None: all
    stay, none is held out."""

    sample: int | None = None
    held_out: int | None = None


def draw(seed, purpose, unit):
    """A number from 0 to 2**64 - 1 for each unit, as good as random; independent for each purpose."""
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8,
                                          key=f"{seed} {purpose}".encode()).digest(), "little")  # fmt: skip


def limits(draws, count, share):
    """The Limits of a set.

    Args:
      draws: of its pairs, those of rows of one unit are equal.
      count: pairs that stay; 0: all that are not held out.
      share: of the pairs that is held out, rounded up.

    Raises ValueError where there are not so many.
    """
    held_out = None
    if share:
        total = len(np.unique(np.asarray(draws, np.uint64)))
        left = total - math.ceil(share * total)
        if left < max(1, count):
            raise ValueError(f"--held_out={share}: leaves {left} of {total} pairs, must leave at least {max(1, count)}")
        held_out = sample_limit(draws, left)
    return Limits(sample_limit(draws, count) if count else None, held_out)


def sample_limit(draws, count):
    """The largest of the `count` smallest distinct draws: those at or below it are the sample.

    Raises ValueError where there are fewer.
    """
    distinct = np.unique(np.asarray(draws, np.uint64))
    if len(distinct) < count:
        raise ValueError(f"--paired_sample={count}: must be at most {len(distinct)}, the pairs that there are")
    return int(distinct[count - 1])


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
