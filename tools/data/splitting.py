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
    """Pairs whose draw "held_out" is at most `held_out` are held out; of the others, those whose draw "sample" is at
    most `sample` stay pairs. None: no pair is held out, all others stay."""

    held_out: int | None = None
    sample: int | None = None


def draw(seed, purpose, unit):
    """A number from 0 to 2**64 - 1 for each unit, as good as random; independent for each purpose."""
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8,
                                          key=f"{seed} {purpose}".encode()).digest(), "little")  # fmt: skip


def limits(held_out, sample, share, count):
    """The Limits of a set.

    Args:
      held_out, sample: the draws of those names of its pairs, int64 arrays in one order; rows of a unit draw alike.
      share: of the pairs that is held out, rounded up.
      count: pairs that stay of those that are not held out; 0: all.

    Raises ValueError where nothing would be left, or there are fewer than `count`.
    """
    held_out, sample = (np.asarray(draws, np.uint64) for draws in (held_out, sample))
    limit = None
    if share:
        distinct = np.unique(held_out)
        first = math.ceil(share * len(distinct))
        if first >= len(distinct):
            raise ValueError(f"--held_out={share}: leaves no pair to train on of the {len(distinct)} that there are")
        limit = int(distinct[first - 1])
        sample = sample[held_out > limit]
    return Limits(limit, sample_limit(sample, count) if count else None)


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
    if limits.held_out is not None and draw(seed, "held_out", unit) <= limits.held_out:
        return "held_out"
    if limits.sample is not None and draw(seed, "sample", unit) <= limits.sample:
        return "paired"
    if halves:
        return ("images", "texts")[draw(seed, "halves", unit) & 1]
    return "paired" if limits.sample is None else None
