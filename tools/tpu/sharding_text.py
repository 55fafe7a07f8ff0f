"""Shardings as XLA writes them, such as {devices=[4,1,2]<=[2,4]T(1,0) last_tile_dim_replicate}. Pure Python.

A spec names the mesh axis of each dimension of a tensor (see itit/xla/sharding.py), several as a tuple, or None.
"""

import math
import re

REPLICATED = "{replicated}"
_FORM = re.compile(r"\{devices=\[([\d,]+)\](?:<=\[([\d,]+)\](?:T\(([\d,]+)\))?|([\d,]+))( last_tile_dim_replicate)?\}")


def axes_of(entry):
    """The axes that one dimension is split over."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def parts(spec, mesh):
    """How many parts each dimension is cut into; `mesh`: axis -> size, in order."""
    return tuple(math.prod(mesh[axis] for axis in axes_of(entry)) for entry in spec)


def to_text(spec, mesh):
    """A spec on a mesh of devices 0, 1, ... in row order."""
    tiles = parts(spec, mesh)
    if math.prod(tiles) == 1:
        return REPLICATED
    used = [axis for entry in spec for axis in axes_of(entry)]
    if len(set(used)) != len(used):
        raise ValueError(f"spec {spec}: an axis is used twice")
    copies = math.prod(size for axis, size in mesh.items() if axis not in used)
    # XLA reads only the shortest form: no axis of one device, as one those that stay side by side, and no order where
    # it is the usual one.
    names = [axis for axis, size in mesh.items() if size > 1]
    runs = []
    for axis in [axis for axis in used if axis in names] + [axis for axis in names if axis not in used]:
        if runs and names.index(axis) == names.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    tiles = ",".join(map(str, tiles + ((copies,) if copies > 1 else ())))
    grid = sorted(runs, key=lambda run: names.index(run[0]))
    devices = f"[{','.join(str(math.prod(mesh[axis] for axis in run)) for run in grid)}]"
    if len(runs) > 1:
        devices += f"T({','.join(str(grid.index(run)) for run in runs)})"
    return f"{{devices=[{tiles}]<={devices}" + (" last_tile_dim_replicate}" if copies > 1 else "}")


def canonical(text):
    """One form for the ways to write the same sharding: (tiles, device ids, whether the last tile is of copies)."""
    if text.replace(" ", "") in ("{replicated}", "{maximaldevice=0}"):
        return REPLICATED
    match = _FORM.fullmatch(text)
    if not match:
        raise ValueError(f"cannot read the sharding {text}")
    tiles, reshape, order, devices, copies = match.groups()
    return numbers(tiles), numbers(devices) if devices else iota(reshape, order), copies is not None


def numbers(text):
    return tuple(int(n) for n in text.split(","))


def iota(shape, order=None):
    """Device ids of `<=[32,8]T(1,0)`: 0, 1, ... in the shape "32,8", its dimensions then taken in the order "1,0"."""
    shape = numbers(shape)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    ids = [0]
    for i in numbers(order) if order else range(len(shape)):
        ids = [start + k * strides[i] for start in ids for k in range(shape[i])]
    return tuple(ids)
