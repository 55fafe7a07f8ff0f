"""Pickled checkpoints: the tensors are those of torch.load; what else a file asks for is refused before it runs."""

import os
import random
import subprocess
import sys
import zipfile

import pytest
import torch

from tests.helpers import foreign_weights
from tests.helpers.common import ROOT
from tools.convert import pickled


class Runs:
    """A pickle of it makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Own:
    pass


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
          torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]  # fmt: skip
NEWER = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def tensors():
    return {"a.weight": torch.randn(3, 4), "b": torch.randn(2).half()}


def random_view(rng, base):
    """A part of a tensor of one dimension with a random shape, offset and strides."""
    size = [rng.randrange(1, 5) for _ in range(rng.randrange(4))]
    order = list(range(len(size)))
    rng.shuffle(order)
    stride, step = [0] * len(size), 1
    for dim in order:
        stride[dim] = step
        step *= size[dim] + rng.randrange(2)
    return base.as_strided(size, stride, rng.randrange(len(base) - step))


def random_state(rng, dtypes):
    state = {}
    for i, dtype in enumerate(dtypes):
        base = torch.randint(256, (4000,), dtype=torch.uint8)
        base = base % 2 == 0 if dtype == torch.bool else base.view(dtype)
        for j in range(rng.randrange(1, 4)):
            state[f"{i}.{j}"] = random_view(rng, base)
        if dtype.is_floating_point and rng.random() < 0.5:
            state[f"{i}.parameter"] = torch.nn.Parameter(random_view(rng, base), requires_grad=rng.random() < 0.5)
        state[f"{i}.empty"] = base[:0].view(0, 3)
    return state


def same(found, expected):
    """Names in order, types, shapes, strides and bytes."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        mine = found[name]
        assert (mine.dtype, mine.shape, mine.stride()) == (tensor.dtype, tensor.shape, tensor.stride()), name
        assert not mine.requires_grad and type(mine) is torch.Tensor
        bits = [
            torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()).view(-1).view(torch.uint8) for t in (mine, tensor)
        ]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_are_those_of_torch(tmp_path, legacy):
    rng = random.Random()
    path = tmp_path / "pytorch_model.bin"
    for _ in range(20):
        state = random_state(rng, rng.sample(DTYPES + ([] if legacy else NEWER), 6))
        foreign_weights.write(tmp_path, state, "bin", legacy=legacy)
        same(pickled.read(str(path)), foreign_weights.read(path))
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))  # an OrderedDict with metadata
    foreign_weights.write(tmp_path, module.state_dict(), "bin", legacy=legacy)
    same(pickled.read(str(path)), foreign_weights.read(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_what_shares_its_bytes_shares_them_and_the_file_stays_as_it_is(tmp_path, legacy):
    base = torch.arange(12.0).view(3, 4)
    foreign_weights.write(tmp_path, {"a": base, "b": base.t()[1:], "c": base + 0}, "bin", legacy=legacy)
    path = tmp_path / "pytorch_model.bin"
    before, found = path.read_bytes(), pickled.read(str(path))
    found["a"][0, 1] = 50.0
    assert found["b"][0, 0] == 50.0 and found["c"][0, 1] == 1.0
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["new", "legacy", "lightning"])
def test_tensors_come_back(tmp_path, kind):
    written = tensors()
    if kind == "lightning":
        path = tmp_path / "last.ckpt"
        foreign_weights.write_lightning(path, written)
    else:
        foreign_weights.write(tmp_path, written, "bin", legacy=kind == "legacy")
        path = tmp_path / "pytorch_model.bin"
    found = pickled.read(str(path))
    assert "pytorch_lightning" not in sys.modules
    assert found.keys() == written.keys() and all(torch.equal(found[name], t) for name, t in written.items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_runs(tmp_path, inside, legacy):
    trap, path = tmp_path / "made", str(tmp_path / "bad.ckpt")
    value = {"state_dict": tensors() | {"c": Runs(trap)}} if inside else Runs(trap)
    foreign_weights.write_anything(path, value, legacy)
    with pytest.raises(ValueError, match=f"^{path}: damaged, or asks for more than tensors: asks for 'posix.mkdir'; "):
        pickled.read(path)
    assert not trap.exists()
    function, arguments = Runs(trap).__reduce__()
    function(*arguments)
    assert trap.exists()  # so it would have been


def test_torch_is_not_asked_to_open_it(tmp_path):
    """Before 2.10 torch.load can be made to write where it must not, whatever is switched on."""
    foreign_weights.write(tmp_path, tensors(), "bin")
    code = f"""
import torch
from tools.convert import pickled
torch.load = torch.serialization._load = torch.serialization._legacy_load = torch._C.PyTorchFileReader = None
print(len(pickled.read({str(tmp_path / "pytorch_model.bin")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def test_other_contents_are_named(tmp_path):
    path = str(tmp_path / "x.ckpt")
    foreign_weights.write_anything(path, {"a": Own()})
    with pytest.raises(ValueError, match=f"more than tensors: asks for '{__name__}.Own'; where it comes from, "):
        pickled.read(path)
    for value in ([torch.ones(2)], {"state_dict": {"a": 3}}, {}, {"epoch": 3, "a": torch.ones(1)}, {3: torch.ones(1)}):
        foreign_weights.write_anything(path, value)
        with pytest.raises(ValueError, match="holds no dict of tensors"):
            pickled.read(path)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for legacy in (False, True):
        foreign_weights.write(tmp_path, tensors(), "bin", legacy=legacy)
        whole = path.read_bytes()
        for length in (0, 1, 10, 300, len(whole) - 1, len(whole) - 22):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=f"^{path}: damaged"):
                pickled.read(str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"^{path}: damaged"):
        pickled.read(str(path))
    with pytest.raises(FileNotFoundError):
        pickled.read(str(tmp_path / "absent.bin"))


def test_other_archives_are_named(tmp_path):
    path = tmp_path / "x.pt"
    foreign_weights.write_anything(path, tensors())
    with zipfile.ZipFile(path) as whole:
        files = {name: whole.read(name) for name in whole.namelist()}
    for changes, message in (
        ({"x/byteorder": b"big"}, "its numbers have the order b'big'"),
        ({"x/data/0": b"123"}, "^.*: damaged: 'a.weight' lies in 48 bytes, and 3 are there$"),
        ({"x/data/0": None}, "'a.weight' lies in 48 bytes, and 0 are there"),
        ({"x/data.pkl": None}, "holds 0 state dicts"),
        ({"y/data.pkl": b""}, "holds 2 state dicts"),
    ):
        with zipfile.ZipFile(path, "w") as changed:
            for name, data in (files | changes).items():
                if data is not None:
                    changed.writestr(name, data)
        with pytest.raises(ValueError, match=message):
            pickled.read(str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_whatever_byte_is_another_one_it_is_read_or_refused(tmp_path, legacy):
    """No other error, no crash: the tensors that come out can be looked at."""
    rng, path = random.Random(), tmp_path / "pytorch_model.bin"
    foreign_weights.write(tmp_path, random_state(rng, [torch.float32, torch.int16]), "bin", legacy=legacy)
    whole = path.read_bytes()
    refused = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 5])):
            data[rng.randrange(len(data) if rng.random() < 0.3 else 900)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            found = pickled.read(str(path))
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert all(tensor.clone().numel() <= len(whole) for tensor in found.values())
    assert refused > 100
