"""Tensors in pieces: every cut comes back whole and in part, and a reader touches no byte that it does not need."""

import itertools
import random

import google_crc32c
import pytest
import safetensors.torch
import torch

from itit import storage
from itit.checkpoint import shards
from itit.checkpoint.pieces import Piece
from itit.checkpoint.shards import Damaged, Reader

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64, torch.uint8)


def random_tensor():
    shape = [random.randint(1, 7) for _ in range(random.randint(0, 3))]
    return torch.randint(0, 2**15, shape).to(random.choice(DTYPES))


def random_cut(size, count):
    """`count` parts of a dimension: [(start, stop)]."""
    if not size:
        return [(0, 0)]
    ends = [0, *sorted(random.sample(range(1, size), min(count, size) - 1)), size]
    return list(itertools.pairwise(ends))


def cut(tensor):
    """Random pieces that make up the tensor."""
    grid = itertools.product(*(random_cut(size, random.randint(1, 3)) for size in tensor.shape))
    return [Piece(tuple(tensor.shape), index, part(tensor, index)) for index in grid]


def part(tensor, index):
    for dim, (start, stop) in enumerate(index):
        tensor = tensor.narrow(dim, start, stop - start)
    return tensor


def write(tmp_path, tensors, count):
    """Pieces of the tensors, dealt to `count` files."""
    files = [{name: [] for name in tensors} for _ in range(count)]
    for name, tensor in tensors.items():
        for piece in cut(tensor):
            random.choice(files)[name].append(piece)
    return {str(tmp_path / f"{i}.safetensors"): shards.write(str(tmp_path / f"{i}.safetensors"), pieces)
            for i, pieces in enumerate(files)}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [b"[" * 10**6, b"\xff", b"[]", b"{}", b'{"__metadata__": {"pieces": "7"}}', b'{"__metadata__": 7}',
     b'{"__metadata__": {"pieces": "{\\"a\\": {\\"tensor\\": 3}}"}}'],
)  # fmt: skip
def test_a_header_with_a_right_checksum_that_is_no_checkpoints(tmp_path, text):
    header = len(text).to_bytes(8, "little") + text
    path = tmp_path / "x.safetensors"
    path.write_bytes(header)
    record = {"bytes": len(header), "header_bytes": len(header), "header_crc32c": google_crc32c.value(header)}
    with pytest.raises(Damaged, match="its header is none of a checkpoint: ") as error:
        Reader({str(path): record})
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_part_of_any_cut_comes_back(tmp_path, count):
    tensors = {f"t{i}": random_tensor() for i in range(20)} | {"none": torch.zeros(0, 3), "one": torch.tensor(3.5)}
    reader = Reader(write(tmp_path, tensors, count))
    assert reader.shapes == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        found = reader.read(name)
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        index = tuple(random.choice(random_cut(size, 3)) for size in tensor.shape)
        assert torch.equal(reader.read(name, index), part(tensor, index))


def test_other_programs_read_the_files(tmp_path):
    table = torch.randn(4, 6)
    pieces = {"table": [Piece((4, 6), ((2, 4), (0, 6)), table[2:])], "bias": [Piece((3,), ((0, 3),), torch.ones(3))]}
    shards.write(str(tmp_path / "x"), pieces)
    found = safetensors.torch.load_file(tmp_path / "x")
    assert found.keys() == {"table[2:4, 0:6]", "bias"} and torch.equal(found["table[2:4, 0:6]"], table[2:])


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    table = torch.randn(64, 100)
    pieces = [Piece((64, 100), ((i, i + 8), (0, 100)), table[i : i + 8]) for i in range(0, 64, 8)]
    halves = [{"table": pieces[:4]}, {"table": pieces[4:]}]
    paths = [str(tmp_path / name) for name in "ab"]
    reader = Reader({path: shards.write(path, half) for path, half in zip(paths, halves, strict=True)})
    asked, read_range = [], storage.read_range

    def noted(path, offset, length):
        asked.append((path, length))
        return read_range(path, offset, length)

    monkeypatch.setattr(storage, "read_range", noted)
    assert torch.equal(reader.read("table", ((12, 20), (30, 40))), table[12:20, 30:40])
    assert asked == [(paths[0], 3200), (paths[0], 3200)]
    asked.clear()
    assert torch.equal(reader.read("table", ((30, 34), (0, 100))), table[30:34])
    assert sorted(asked) == [(paths[0], 3200), (paths[1], 3200)]


def test_damage_is_named(tmp_path):
    tensors = {"a": torch.randn(6, 5), "b": torch.randn(9)}
    files = write(tmp_path, tensors, 2)
    path = max(files, key=lambda path: files[path]["bytes"])
    with open(path, "rb") as file:
        data = file.read()
    for _ in range(20):
        place = random.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << random.randrange(8)
        with open(path, "wb") as file:
            file.write(changed)
        with pytest.raises(Damaged, match=f"^{path}: wrong checksum$"):
            reader = Reader(files)
            assert place >= files[path]["header_bytes"]  # what is not looked at yet
            [reader.read(name) for name in tensors]
    with open(path, "wb") as file:
        file.write(data[:-1])
    with pytest.raises(Damaged, match=f"{path}: {len(data) - 1} bytes instead of {len(data)}"):
        Reader(files)
    halves = [{"a": [Piece((6, 5), ((first, first + 3), (0, 5)), tensors["a"][first : first + 3])]} for first in (0, 3)]
    half = {str(tmp_path / "half"): shards.write(str(tmp_path / "half"), halves[0])}
    with pytest.raises(Damaged, match="^a: 15 of 30 numbers are there$"):
        Reader(half)
    with pytest.raises(Damaged, match="^.*/other is not there$"):
        Reader(half | {str(tmp_path / "other"): half[str(tmp_path / "half")]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(tmp_path, monkeypatch, bad):
    tensors = {"a": torch.randn(6, 5), "b": torch.randn(9).bfloat16()}
    name = random.choice("ab")
    tensors[name].view(-1)[random.randrange(tensors[name].numel())] = bad
    with pytest.raises(ValueError, match=rf"not written: {name}(\[.*\])? holds NaN or infinity"):
        write(tmp_path, tensors, 1)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "finite", lambda tensor: True)
        files = write(tmp_path, tensors, 1)
    reader = Reader(files)
    other = "ba"["ab".index(name)]
    assert torch.equal(reader.read(other), tensors[other])
    with pytest.raises(Damaged, match=f": {name} holds NaN or infinity"):
        reader.read(name)
