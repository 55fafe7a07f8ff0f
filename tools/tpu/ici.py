"""How long a collective takes at least on the links between chips: `seconds`. Pure Python.

A group of chips moves its bytes along every axis of the torus that it extends over, all axes at once: on a ring by both
directions, on a line by one, because the chips at its ends have but one link there. Bytes and the way of the first byte
are counted, whichever is longer; other traffic, and how the compiler splits the work, are not. A lower bound, which
nobody has held against a TPU.

Formulas: "How to Scale Your Model" (jax-ml.github.io/scaling-book), part 3.
"""

import math

HOP_SECONDS = 1e-6  # from chip to chip, same source, part 3
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def extents(topology, group):
    """The axes that a group of device ids extends over: (chips along it, whether they close to a ring) each."""
    found = []
    for axis in range(len(topology.shape)):
        size = len({topology.coordinates(device)[axis] for device in group})
        if size > 1:
            found.append((size, size == topology.shape[axis] and topology.is_ring(axis)))
    return found


def seconds(topology, kind, size, group):
    """Time of one collective.

    Args:
      kind: one of KINDS.
      size: bytes a chip: the whole result of all-gather, the whole operand of the others.
      group: device ids of one group of those that move at once.
    """
    axes, link = extents(topology, group), topology.chip.link_bytes
    if not axes:
        return 0.0
    hops = sum(n // 2 if ring else n - 1 for n, ring in axes)
    if kind == "collective-permute":
        return max(size / link, HOP_SECONDS)
    if kind == "all-to-all":
        # A row goes n / 4 links far on a ring, by either direction; half of all rows cross the middle of a line.
        return max(hops * HOP_SECONDS, *(size * n / (8 if ring else 4) / link for n, ring in axes))
    lanes = sum(2 if ring else 1 for _, ring in axes)
    once = max(hops * HOP_SECONDS, size * (1 - 1 / len(group)) / (lanes * link))
    return 2 * once if kind == "all-reduce" else once


def moved(kind, size, num_chips):
    """Bytes that a chip receives in one collective of this `size` (see `seconds`)."""
    share = 1 - 1 / num_chips
    return math.ceil(size * {"all-reduce": 2 * share, "collective-permute": 1}.get(kind, share))
