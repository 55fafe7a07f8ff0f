"""safetensors files read and written one tensor at a time, so that a file may be larger than memory.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length of the header; the header, JSON: name ->
dtype, shape, first and last byte; the tensors, one after the other, row-major, little-endian.
"""

import hashlib
import itertools
import json
import math
from typing import NamedTuple

import torch

from itit import storage
from itit.untrusted import parse_json, shown

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
MAX_HEADER = 2**25  # far above the headers of the largest networks, which name some thousands of tensors
MAX_DIMS, LARGEST = 64, 2**62  # of dimensions, which is torch's own, and of numbers in a tensor


def finite(tensor):
    """Whether no number of a tensor is NaN or infinity, in one pass and no memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(end) for end in torch.aminmax(tensor.detach()))  # a NaN is both ends


def check_finite(tensors, place):
    """Raises ValueError, `place` and the name of the first tensor with a number that is not finite."""
    for name, tensor in tensors.items():
        if not finite(tensor):
            raise ValueError(f"{place}: {shown(name)} holds NaN or infinity")


class Entry(NamedTuple):
    """One tensor of a file: `begin` and `end` count bytes after the header."""

    dtype: torch.dtype
    shape: tuple
    begin: int
    end: int


class TensorFile:
    """A safetensors file open for reading; a context manager.

    Attributes: `entries`, name -> Entry in the order of the file; `metadata`, dict of str.

    Raises ValueError naming path and cause: everything that the header says is checked against the file's size before
    anything is allocated.
    """

    def __init__(self, path):
        self.path = path
        self._file = storage.open_regular(path)
        try:
            self._start, header = self._read_header(storage.size(path))
            self.metadata = self._checked_metadata(header.pop(METADATA, {}))
            self.entries = self._check(header, storage.size(path) - self._start)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def read(self, name):
        """One tensor, on the CPU."""
        entry = self.entries[name]
        self._file.seek(self._start + entry.begin)
        return self._next(entry, None)

    def read_all(self):
        """Every tensor by name, and the SHA-256 of the whole file as hex digits, in one pass."""
        digest = hashlib.sha256()
        self._file.seek(0)
        digest.update(self._file.read(self._start))
        return {name: self._next(entry, digest) for name, entry in self.entries.items()}, digest.hexdigest()

    def _next(self, entry, digest):
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        data = memoryview(tensor.view(-1).view(torch.uint8).numpy())
        for start in range(0, len(data), storage.CHUNK):
            part = data[start : start + storage.CHUNK]
            if self._file.readinto(part) != len(part):
                raise ValueError(f"{self.path}: ends early")
            if digest:
                digest.update(part)
        return tensor

    def _read_header(self, size):
        length = int.from_bytes(self._file.read(8), "little") if size >= 8 else size
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{self.path}: not a safetensors file, or cut off: {size} bytes")
        return 8 + length, parse_json(self._file.read(length), f"{self.path}: not a safetensors file: its header")

    def _checked_metadata(self, metadata):
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError(f"{self.path}: its {METADATA} are not texts by name")
        return metadata

    def _entry(self, name, found):
        """What a header says of a tensor, as an Entry of whole numbers in bounds."""
        try:
            dtype, shape, (begin, end) = DTYPES[found["dtype"]], found["shape"], found["data_offsets"]
            numbers = [begin, end, *shape]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: its header holds what safetensors do not: {shown(name)}: "
                             f"{shown(repr(error))}") from None  # fmt: skip
        if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n <= LARGEST for n in numbers):
            raise ValueError(f"{self.path}: its header holds what safetensors do not: {shown(name)} has sizes or "
                             f"places that cannot be: {shown(str(found))}")  # fmt: skip
        if math.prod(max(n, 1) for n in shape) > LARGEST:
            raise ValueError(f"{self.path}: {shown(name)} is of size {shown(str(shape))}, more than there can be")
        return Entry(dtype, tuple(shape), begin, end)

    def _check(self, header, num_bytes):
        entries, place = {}, 0
        found = {name: self._entry(name, entry) for name, entry in header.items()}
        for name, entry in sorted(found.items(), key=lambda item: item[1][2:]):
            length = math.prod(entry.shape) * entry.dtype.itemsize
            if (entry.begin, entry.end) != (place, place + length):
                raise ValueError(f"{self.path}: {shown(name)} lies at bytes {entry.begin} to {entry.end}, "
                                 f"should lie at {place} to {place + length}")  # fmt: skip
            entries[name], place = entry, entry.end
        if place != num_bytes:
            raise ValueError(f"{self.path}: {num_bytes} bytes of tensors instead of {place}; cut off?")
        return entries


def write(path, layout, tensors, metadata=None):
    """Writes a file, visible once it is whole.

    Args:
      layout: name -> (dtype, shape) of every tensor.
      tensors: iterable of the tensors in that order, each asked for when the one before is written.
      metadata: dict of str.

    Returns:
      {"bytes": size, "sha256": hex digits}.

    Raises ValueError for a number that is not finite: there is no file then.
    """
    header, place = {METADATA: {"format": "pt"} | (metadata or {})}, 0
    for name, (dtype, shape) in layout.items():
        end = place + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of eight bytes
    tensors = (_bytes(path, name, t, *layout[name]) for name, t in zip(layout, tensors, strict=True))
    digest, size = hashlib.sha256(), 0
    with storage.writer(path) as file:
        for data in itertools.chain((len(text).to_bytes(8, "little"), text), tensors):
            file.write(data)
            digest.update(data)
            size += len(data)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _bytes(path, name, tensor, dtype, shape):
    assert tensor.dtype == dtype and tuple(tensor.shape) == tuple(shape), (tensor.dtype, tensor.shape, dtype, shape)
    tensor = tensor.detach().cpu()
    check_finite({name: tensor}, f"{path}: not written")
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
