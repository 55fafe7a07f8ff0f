"""Which items become pairs, unpaired pictures or unpaired texts: pure functions of a seed and the ids.

As in the paper (sec. 4.1): of the pairs that are taken apart, one half gives its pictures and the other its texts, so
that no picture is there with a text of its own.
"""

import hashlib

SPLITS = {"paired": ("image", "text"), "images": ("image",), "texts": ("text",)}
HOLDS = SPLITS | {None: ()}  # also of what goes nowhere


def draw(seed, purpose, unit):
    """A number from 0 to 2**64 - 1 for each unit, as good as random; independent for each purpose."""
    return int.from_bytes(hashlib.blake2b(unit.encode("utf-8", "surrogateescape"), digest_size=8,
                                          key=f"{seed} {purpose}".encode()).digest(), "little")  # fmt: skip


def split_of(item, seed, limit, halves):
    """Where an item goes: a key of SPLITS, or None.

    Args:
      limit: pairs whose draw is at most this are the sample; None: all pairs are in it.
      halves: pairs outside the sample (without one: all pairs) are halved; else they go nowhere.
    """
    if not item.image or not item.texts:
        return "images" if item.image else "texts"
    unit = item.unit or item.key
    if limit is not None and draw(seed, "sample", unit) <= limit:
        return "paired"
    if halves:
        return ("images", "texts")[draw(seed, "halves", unit) & 1]
    return "paired" if limit is None else None
