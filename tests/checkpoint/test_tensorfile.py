"""safetensors one tensor at a time, against the safetensors library both ways; damaged headers are refused."""

import hashlib
import json
import random

import pytest
import safetensors
import safetensors.torch
import torch

from itit import storage
from itit.checkpoint import tensorfile
from tests.checkpoint.test_checkpoint import random_tensors, same
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


def separate(tensors):
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def layout(tensors):
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def test_what_we_write_the_library_reads(tmp_path):
    path, tensors = str(tmp_path / "t.safetensors"), random_tensors(random.randrange(10**9))
    written = tensorfile.write(path, layout(tensors), iter(tensors.values()), {"who": "ä"})
    assert same(safetensors.torch.load_file(path), separate(tensors))
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "ä"}
    data = (tmp_path / "t.safetensors").read_bytes()
    assert written == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert storage.sha256(path) == written["sha256"]


def test_what_the_library_writes_we_read(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "CHUNK", 100)
    path, tensors = str(tmp_path / "t.safetensors"), separate(random_tensors(random.randrange(10**9)))
    safetensors.torch.save_file(tensors, path, {"a": "b"})
    with tensorfile.TensorFile(path) as file:
        assert file.metadata == {"a": "b"}
        found, digest = file.read_all()
        assert digest == hashlib.sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()
        names = random.sample(list(tensors), len(tensors))
        assert same({name: file.read(name) for name in names}, {name: tensors[name] for name in names})
    assert same({name: found[name] for name in tensors}, tensors)


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        yield torch.zeros(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tensorfile.write(str(tmp_path / "t"), dict.fromkeys("ab", (torch.float32, (2,))), fail())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, bad):
    tensors = separate(random_tensors(random.randrange(10**9)))
    name = random.choice(["table", "bf16", "float64", "scalar"])
    tensors[name].view(-1)[random.randrange(tensors[name].numel())] = bad
    with pytest.raises(ValueError, match=f"t: not written: {name} holds NaN or infinity"):
        tensorfile.write(str(tmp_path / "t"), layout(tensors), tensors.values())
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"^here: {name} holds"):
        tensorfile.check_finite(tensors, "here")


def with_header(header, num_bytes=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_bytes)


def entry(**changes):
    return {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize("data,part", [
    (b"", "not a safetensors file, or cut off: 0 bytes"),
    (b"1234567", "cut off: 7 bytes"),
    ((2**60).to_bytes(8, "little") + b"{}", "cut off"),
    (with_header(b"{", 0), "its header: not JSON"),
    (with_header(b"\xff\xff", 0), "its header: not JSON"),
    (with_header(b"[" * 10**6, 0), "its header: not JSON: nested too deeply"),
    (with_header([1]), "its header: not a JSON object"),
    (with_header(entry() | {"__metadata__": [1]}), "its __metadata__ are not texts by name"),
    (with_header(entry() | {"__metadata__": {"itit": 3}}), "its __metadata__ are not texts by name"),
    (with_header(entry(dtype="F" * 10**6)), "FFFF..."),
    (with_header(entry(dtype=["F32"])), "its header holds"),
    (with_header(entry(shape=3)), "its header holds"),
    (with_header(entry(shape=["2"])), "sizes or places that cannot be"),
    (with_header(entry(shape=[2.0])), "sizes or places that cannot be"),
    (with_header(b'{"t": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}'), "that cannot be"),
    (with_header(entry(shape=[1] * 10**5 + [2])), "that cannot be"),
    (with_header(entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), 0), "more than there can be"),
    (with_header({"a\n\x1b[31m\u202eb": entry()["t"]}, 7), "7 bytes of tensors instead of 8"),
    (with_header({"a\n\x1b[31m\u202eb": 3}), "do not: a\\n\\x1b[31m\\u202eb: TypeError"),
    (with_header(entry(dtype="F4")), "'F4'"),
    (with_header({"t": 3}), "its header holds"),
    (with_header(entry(shape=["x"])), "its header holds"),
    (with_header(entry(data_offsets=[0])), "its header holds"),
    (with_header(entry(shape=[-2])), "sizes or places that cannot be"),
    (with_header(entry(shape=[3])), "should lie at 0 to 12"),
    (with_header(entry(shape=[10**12, 10**12])), "more than there can be"),
    (with_header(entry(shape=[10**9, 10**9])), "should lie at 0 to"),
    (with_header(entry(data_offsets=[4, 12]), 12), "t lies at bytes 4 to 12"),
    (with_header(entry(), 7), "7 bytes of tensors instead of 8"),
    (with_header(entry(), 9), "9 bytes of tensors instead of 8"),
    (with_header(entry() | {"u": entry()["t"]}), "lies at bytes 0 to 8, should lie at 8 to 16"),
])  # fmt: skip
def test_bad_files_are_refused_before_anything_is_read(tmp_path, data, part):
    path = tmp_path / "t.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="^.*t.safetensors: ") as error:
        tensorfile.TensorFile(str(path))
    assert part in str(error.value) and str(error.value).isprintable() and len(str(error.value)) < 1000
