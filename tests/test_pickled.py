"""Pickled checkpoints: tensors come out; whatever else a file asks for is refused before it runs."""

import os
import sys

import pytest
import torch

from tests import foreign_weights
from tools import pickled


class Runs:
    """A pickle of it makes a folder when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Own:
    pass


def tensors():
    return {"a.weight": torch.randn(3, 4), "b": torch.randn(2).half()}


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


@pytest.mark.parametrize("inside", [False, True])
def test_nothing_runs(tmp_path, inside):
    trap, path = tmp_path / "made", str(tmp_path / "bad.ckpt")
    foreign_weights.write_anything(path, {"state_dict": tensors() | {"c": Runs(trap)}} if inside else Runs(trap))
    with pytest.raises(ValueError, match=f"^{path}: damaged, or asks for more than tensors: .* GLOBAL posix.mkdir$"):
        pickled.read(path)
    assert not trap.exists()
    function, arguments = Runs(trap).__reduce__()
    function(*arguments)
    assert trap.exists()  # so it would have been


def test_other_contents_are_named(tmp_path):
    path = str(tmp_path / "x.ckpt")
    foreign_weights.write_anything(path, {"a": Own()})
    with pytest.raises(ValueError, match="more than tensors: Unsupported global: GLOBAL tests.test_pickled.Own$"):
        pickled.read(path)
    for value in ([torch.ones(2)], {"state_dict": {"a": 3}}, {}, {"epoch": 3, "a": torch.ones(1)}):
        foreign_weights.write_anything(path, value)
        with pytest.raises(ValueError, match="holds no dict of tensors"):
            pickled.read(path)


def test_damaged_files_are_named(tmp_path):
    foreign_weights.write(tmp_path, tensors(), "bin")
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"^{path}: damaged"):
        pickled.read(str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"^{path}: damaged"):
        pickled.read(str(path))
    with pytest.raises(FileNotFoundError):
        pickled.read(str(tmp_path / "absent.bin"))
