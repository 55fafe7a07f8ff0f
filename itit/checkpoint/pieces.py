"""Parts of tensors of a state, and the arithmetic of their indices. Pure Python."""

from typing import NamedTuple


class Piece(NamedTuple):
    """A part of a tensor of the state. Plain data, like all here; `value` is a tensor on the host.

    shape: of the whole tensor. index: (start, stop) of each dimension.
    """

    shape: tuple
    index: tuple
    value: object

    def of_row(self, row, shape):
        """Of a buffer [rows, ..., *shape], the piece of one row's last dimensions; those between have size 1."""
        index = self.index[-len(shape) :]
        return Piece(shape, index, self.value[row].reshape([stop - start for start, stop in index]))


def whole_index(shape):
    return tuple((0, size) for size in shape)


def slices(index, origin=None):
    """An index as slices, of the whole tensor or of the part that lies at the index `origin`."""
    starts = [start for start, _ in origin] if origin else [0] * len(index)
    return tuple(slice(start - first, stop - first) for (start, stop), first in zip(index, starts, strict=True))


def overlap(a, b):
    """The index of what two parts of a tensor share, or None."""
    index = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return index if all(start < stop for start, stop in index) else None
