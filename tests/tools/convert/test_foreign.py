"""foreign and pickled: tensors of others by name; nothing but tensors is taken from a pickle."""

import json
import random

import pytest
import torch

from tests.helpers import foreign_weights
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.convert import pickled
from tools.convert.foreign import Checkpoint


class Harmful:
    """Would make a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_tensors_come_back(tmp_path, kind, num_shards):
    tensors = {f"t{i}": torch.randn(random.randint(1, 5), 3).to(random.choice([torch.float32, torch.bfloat16]))
               for i in range(7)}  # fmt: skip
    foreign_weights.write(tmp_path, tensors, kind, num_shards)
    found = Checkpoint(str(tmp_path))
    assert len(found.files) == num_shards and {n for names in found.files.values() for n in names} == set(tensors)
    pairs = [(file, name) for file, names in found.files.items() for name in names]
    random.shuffle(pairs)
    assert all(torch.equal(found.read(file, name), tensors[name]) for file, name in pairs)
    found.close()


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_else_leaves_a_pickle(tmp_path, legacy):
    foreign_weights.write(tmp_path, {"t": Harmful(tmp_path / "made")}, "bin", legacy=legacy)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: damaged, or asks for more than tensors: \S.*"):
        pickled.read(str(tmp_path / "pytorch_model.bin"))
    assert not (tmp_path / "made").exists()
    foreign_weights.write(tmp_path, {"t": 3}, "bin")
    with pytest.raises(ValueError, match="pytorch_model.bin: holds no dict of tensors"):
        Checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="pytorch_model.bin: damaged"):
        Checkpoint(str(tmp_path))


@pytest.mark.parametrize("index,part", [
    ("no JSON", "not an index"),
    ('["t"]', "not an index"),
    ('{"weight_map": {"t": "../model.safetensors"}}', "'../model.safetensors' is no shard beside it"),
    ('{"weight_map": {"t": "model.exe"}}', "'model.exe' is no shard"),
])  # fmt: skip
def test_bad_indices_are_named(tmp_path, index, part):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json: {part}"):
        Checkpoint(str(tmp_path))


def test_what_an_index_promises_must_be_there(tmp_path):
    foreign_weights.write(tmp_path, {"a": torch.ones(1), "b": torch.ones(2)}, num_shards=2)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"] | {"c": "model-00001-of-00002.safetensors", "d": "x.bin"}
    index.write_text(json.dumps({"weight_map": places}))
    found = Checkpoint(str(tmp_path))
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors: no c in it"):
        found.read("model-00001-of-00002.safetensors", "c")
    with pytest.raises(ValueError, match="x.bin: no such shard"):
        found.read("x.bin", "d")
