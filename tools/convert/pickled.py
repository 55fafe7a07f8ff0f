"""Pickled checkpoints of others (.ckpt, .bin, .pt, .pth): the one place where they are opened, for tensors alone.

`torch.load` can be made to run anything or, with weights_only=True before torch 2.10, to write where it must not
(GHSA-63cw-57p8-fm3p). So a file is read without it: its pickle as a description (`unpickled.py`), and the bytes of each
tensor where that and the archive (`zipped.py`) say, once it is certain that they lie there. What leaves a tool is
safetensors.
"""

import mmap
import re

import torch

from itit import storage
from tools.convert import unpickled, zipped
from tools.convert.unpickled import View

SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")
BEFORE_ZIP = 0x1950A86A20F9469CFC6C, 1001  # what the files of PyTorch before version 1.6 begin with
WAY_OUT = "where it comes from, torch.load it and write its tensors with safetensors.torch.save_file"


def read(path):
    """dict[str, Tensor] on the CPU, from a local file that holds one or has it under "state_dict".

    The file is mapped, not read: a tensor takes memory when it is looked at. Tensors that share their bytes in the file
    share them here; none of them requires a gradient.

    Raises ValueError where the file is damaged, asks for more than tensors, or holds no dict of tensors.
    """
    with storage.open_regular(path) as file:
        if not storage.size(path):
            raise ValueError(f"{path}: damaged: empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # written to, the file stays as it is
    try:
        found, places = _read_zip(data) if data[:4] == zipped.LOCAL else _read_before_zip(data)
    except ValueError as error:
        raise ValueError(f"{path}: damaged, or asks for more than tensors: {error}; {WAY_OUT}") from None
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict) or not found or not all(_is_tensor(*item) for item in found.items()):
        raise ValueError(f"{path}: holds no dict of tensors, neither as a whole nor under 'state_dict'")
    try:
        return _tensors(found, data, places)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from None


def _is_tensor(name, value):
    return isinstance(name, str) and isinstance(value, View)


def _read_zip(data):
    """(what the pickle describes, key of a storage -> slice of the bytes of the file)."""
    files = zipped.stored_files(data)
    pickles = [name for name in files if re.fullmatch("[^/]+/data.pkl", name)]
    if len(pickles) != 1:
        raise ValueError(f"holds {len(pickles)} state dicts instead of one")
    folder = pickles[0].partition("/")[0]
    order = files.get(f"{folder}/byteorder", slice(0))
    if data[order] not in (b"", b"little"):
        raise ValueError(f"its numbers have the order {bytes(data[order][:20])!r}: only little is read")
    found, _ = unpickled.load(data[files[pickles[0]]][: unpickled.MAX_BYTES])
    start = f"{folder}/data/"
    return found, {name.removeprefix(start): part for name, part in files.items() if name.startswith(start)}


def _read_before_zip(data):
    """The same of a file without zip: pickles of a number, a version, the machine, the dict and the keys of the
    storages; then each storage, behind how many numbers it has."""
    place, described = 0, []
    for _ in range(5):
        value, length = unpickled.load(data[place : place + unpickled.MAX_BYTES])
        described.append(value)
        place += length
        if described != list(BEFORE_ZIP)[: len(described)] and len(described) <= 2:
            raise ValueError("not a file that torch.save wrote")
    *_, machine, found, keys = described
    if not isinstance(machine, dict) or machine.get("little_endian") is not True or not isinstance(keys, list):
        raise ValueError("not a file that torch.save wrote on a machine like this one")
    storages, places = _storages(found), {}
    for key in keys:
        if not isinstance(key, str) or key not in storages or key in places:
            raise ValueError("its list of storages is not that of its tensors")
        begin, (dtype, num_bytes) = place + 8, storages[key]
        if int.from_bytes(data[place:begin], "little") * dtype.itemsize != num_bytes:
            raise ValueError("a storage has another size than its tensors say; cut off?")
        places[key] = slice(begin, begin + num_bytes)
        place = begin + num_bytes
    return found, places


def _storages(found):
    """Key -> (dtype, bytes) of every storage in what a pickle describes, at whatever depth."""
    storages, seen, left = {}, set(), [found]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, View):
            storages[value.storage.key] = value.storage.dtype, value.storage.num_bytes
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, dict):
            left += value.values()
    return storages


def _tensors(views, data, places):
    """Name -> tensor of the views of a dict."""
    whole, tensors = {}, {}
    for name, view in views.items():
        key, num_bytes = view.storage.key, view.storage.num_bytes
        place = places.get(key, slice(0, -1))
        if place.stop - place.start != num_bytes or place.stop > len(data):
            raise ValueError(f"{name!r} lies in {num_bytes} bytes, and {max(0, place.stop - place.start)} are there")
        if key not in whole:
            whole[key] = _bytes(data, place)
        size = view.dtype.itemsize
        numbers = whole[key][: num_bytes // size * size].view(view.dtype)
        tensors[name] = numbers.as_strided(view.size, view.stride, view.offset)
    return tensors


def _bytes(data, place):
    """uint8 tensor of a part of the file; a copy where the numbers would begin at odd places."""
    if place.stop == place.start:
        return torch.empty(0, dtype=torch.uint8)
    whole = torch.frombuffer(data, dtype=torch.uint8, count=place.stop - place.start, offset=place.start)
    return whole if place.start % 16 == 0 else whole.clone()
