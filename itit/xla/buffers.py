"""Many tensors as few: each that a program reads or returns costs the host some 20 microseconds at every start.

Tensors that lie alike are the rows of one buffer. A program, while it is traced, sees each as its row. Outside it is a
stand-in without a value: reading it is an error, and computing with it ends the process.
"""

import contextlib
import weakref
from typing import NamedTuple

import torch

from itit.xla import api


class _Row(NamedTuple):
    """buffer: see `lay`. tensor: what was packed. stand_in: its value outside programs."""

    buffer: torch.Tensor
    index: int
    tensor: torch.Tensor
    stand_in: torch.Tensor


def lay(tensors, spec):
    """(shape, spec) of a buffer for these, each of this spec. In it a vector is a matrix of one row: of other matrices
    a TPU keeps 8 rows side by side, and would pick one out of them at every use."""
    between = (1,) * (tensors[0].ndim == 1)
    return (len(tensors), *between, *tensors[0].shape), (None, *(None for _ in between), *spec)


class Packs:
    """The packed tensors of a mesh."""

    def __init__(self):
        self._tensors = {}  # id of a tensor -> _Row
        self._stand_ins = {}  # handle of a stand-in -> _Row; another tensor may have it for a while: `State.averaged`
        self._firsts = weakref.WeakKeyDictionary()  # module, optimizer ... -> of each buffer one tensor

    def add(self, buffer, tensors):
        """The tensors become the rows of the buffer, which has their values or none."""
        for index, tensor in enumerate(tensors):
            tensor.data = api.placeholder(tensor.shape, tensor.dtype)
            row = _Row(buffer, index, tensor, tensor.data)
            self._tensors[id(tensor)] = self._stand_ins[api.handle(tensor)] = row
        self._firsts.clear()

    def find(self, tensor):
        """(buffer, index) of a tensor that was packed, else None."""
        row = self._tensors.get(id(tensor))
        return row and (row.buffer, row.index)

    def held(self, leaves):
        """Handles: equal where the packed tensors that these own have the stand-ins that they had."""
        if not self._tensors:
            return ()
        owners = (leaf for leaf in leaves if isinstance(leaf, torch.nn.Module) or hasattr(leaf, "state"))
        return tuple(api.handles([tensor for owner in owners for tensor in self._of(owner)]))

    def _of(self, owner):
        if owner not in self._firsts:
            tensors = owner.parameters() if isinstance(owner, torch.nn.Module) else owner.state().values()
            packed = [t for t in tensors if id(t) in self._tensors]
            self._firsts[owner] = list({id(self._tensors[id(t)].buffer): t for t in packed}.values())
        return self._firsts[owner]

    def buffers(self, tensors):
        """The tensors, none pending or in flight, each packed one's buffer in its place, which comes once."""
        places = [row.buffer if row else tensor for tensor, row in self._rows(tensors)]
        return list({id(place): place for place in places}.values())

    @contextlib.contextmanager
    def opened(self, tensors):
        """Inside, those that are packed have the values of their rows; what they have at the end, the rows have."""
        opened = []
        for tensor, row in self._rows(tensors):
            if row:
                tensor.data = torch.select_copy(row.buffer, 0, row.index).view(tensor.shape)
                opened.append((tensor, row, tensor.detach().clone()))  # a clone is the same value until one changes
        try:
            yield
            changed = {}  # id of a buffer -> (the buffer, index -> new row)
            for tensor, row, before in opened:
                if api.value_id(tensor) != api.value_id(before):
                    new = changed.setdefault(id(row.buffer), (row.buffer, {}))[1]
                    new[row.index] = tensor.detach()
            for buffer, new in changed.values():
                assert len(new) == len(buffer), f"{len(new)} of {len(buffer)} tensors of one buffer were changed"
                buffer.data = torch.stack([new[index] for index in range(len(buffer))]).view(buffer.shape)
        finally:
            for tensor, row, _ in opened:
                tensor.data = row.stand_in

    def _rows(self, tensors):
        """(tensor, its _Row or None) of each."""
        tensors = list(tensors)
        handles = api.handles(tensors) if self._stand_ins else [None] * len(tensors)
        return [(tensor, self._stand_ins.get(handle)) for tensor, handle in zip(tensors, handles, strict=True)]
