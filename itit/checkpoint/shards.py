"""Tensors in pieces over several files, one a host: written by their owners, read by whoever needs a part.

Each file is an ordinary safetensors file. A piece that is a whole tensor has the tensor's name, another one its place
behind it: "model/blocks.0.mlp.fc1.weight[0:64, 0:32]". The file's metadata says under "pieces" what each is, with the
CRC32C of its bytes; so the bytes of a file and the CRC32C of its header vouch for all that is in it.
"""

import json
from typing import NamedTuple

import google_crc32c
import safetensors.torch
import torch

from itit import storage
from itit.checkpoint.pieces import overlap, slices, whole_index
from itit.checkpoint.tensorfile import finite
from itit.untrusted import parse_json, shown

LENGTH_BYTES = 8  # a safetensors file begins with the length of its JSON


class Damaged(ValueError):
    """A file is not what was written, or no use: a number in it is not finite."""


class Part(NamedTuple):
    """Where a piece lies: its index (see `pieces.Piece`), and its bytes in a file."""

    index: tuple
    path: str
    offset: int
    num_bytes: int
    crc32c: int


def write(path, pieces):
    """Writes one file.

    Args:
      pieces: tensor's name -> list of `pieces.Piece`, numbers of any dtype and layout, kept bit for bit.

    Returns:
      What `Reader` asks for: {"bytes", "header_bytes", "header_crc32c"}.

    Raises ValueError naming the tensor where a number is not finite; nothing is written then.
    """
    tensors, notes = {}, {}
    for name, parts in pieces.items():
        for shape, index, value in parts:
            places = ", ".join(f"{start}:{stop}" for start, stop in index)
            key = name if index == whole_index(shape) else f"{name}[{places}]"
            tensors[key] = value.detach().cpu()
            if not finite(tensors[key]):
                raise ValueError(f"{path}: not written: {key} holds NaN or infinity")
            crc32c = google_crc32c.value(tensors[key].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            dtype = str(value.dtype).removeprefix("torch.")
            notes[key] = {"tensor": name, "shape": shape, "index": index, "dtype": dtype, "crc32c": crc32c}
    data = safetensors.torch.save(separate(tensors), {"format": "pt", "pieces": json.dumps(notes)})
    storage.write_bytes(path, data)
    header = data[: LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")]
    return {"bytes": len(data), "header_bytes": len(header), "header_crc32c": google_crc32c.value(header)}


def separate(tensors):
    """Dense CPU tensors of their own memory, as safetensors wants them."""
    places, found = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return found


class Reader:
    """Tensors by name, in whole or in part. Reads headers at once and numbers when asked.

    Args:
      files: path -> what `write` returned.

    `shapes`: name -> shape of each tensor.

    Raises Damaged, also from `read`.
    """

    def __init__(self, files):
        self.shapes, self._dtypes, self._parts = {}, {}, {}
        for path, record in files.items():
            self._open(path, record)
        for name, parts in self._parts.items():
            found = sum(_num_elements(part.index) for part in parts)
            if found != _num_elements(whole_index(self.shapes[name])):
                raise Damaged(f"{name}: {found} of {_num_elements(whole_index(self.shapes[name]))} numbers are there")

    def _open(self, path, record):
        try:
            header = storage.read_range(path, 0, record["header_bytes"])
            found = storage.size(path)
        except FileNotFoundError:
            raise Damaged(f"{path} is not there") from None
        if found != record["bytes"]:
            raise Damaged(f"{path}: {found} bytes instead of {record['bytes']}")
        if google_crc32c.value(header) != record["header_crc32c"]:
            raise Damaged(f"{path}: wrong checksum")
        try:
            self._understand(path, len(header), parse_json(header[LENGTH_BYTES:], path))
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # sound bytes that no checkpoint is made of
            raise Damaged(f"{path}: its header is none of a checkpoint: {shown(repr(error))}") from None

    def _understand(self, path, begin, entries):
        """The pieces of a file whose tensors begin at byte `begin`, by the entries of its header."""
        for key, note in parse_json(entries["__metadata__"]["pieces"], path).items():
            start, stop = (begin + offset for offset in entries[key]["data_offsets"])
            name, index = note["tensor"], tuple(map(tuple, note["index"]))
            self.shapes[name], self._dtypes[name] = tuple(note["shape"]), getattr(torch, note["dtype"])
            self._parts.setdefault(name, []).append(Part(index, path, start, stop - start, note["crc32c"]))

    def read(self, name, index=None):
        """A tensor, or what lies at an index of it (see `pieces.Piece`), on the host. Reads no piece beside it."""
        index = whole_index(self.shapes[name]) if index is None else index
        out = torch.empty([stop - start for start, stop in index], dtype=self._dtypes[name])
        for part in self._parts[name]:
            shared = overlap(part.index, index)
            if shared is not None:
                piece = self._load(part, out.dtype)
                if not finite(piece):
                    raise Damaged(f"{part.path}: {name} holds NaN or infinity")
                out[slices(shared, index)] = piece[slices(shared, part.index)]
        return out

    def _load(self, part, dtype):
        try:
            data = storage.read_range(part.path, part.offset, part.num_bytes)
        except FileNotFoundError:
            raise Damaged(f"{part.path} is not there") from None
        if google_crc32c.value(data) != part.crc32c:
            raise Damaged(f"{part.path}: wrong checksum")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape([stop - start for start, stop in part.index])


def _num_elements(index):
    count = 1
    for start, stop in index:
        count *= stop - start
    return count
