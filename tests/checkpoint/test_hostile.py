"""Files made to harm whoever opens them: refused in one line, before they run or fill anything."""

import io
import json
import os
import resource
import struct
import time
import zlib

import pytest
import torch
from PIL import Image

from itit.checkpoint import store, weights, weightsdir
from itit.config import VqganConfig
from itit.data import images, records, shard_index
from itit.data.records import RecordWriter
from itit.models import VQGAN
from tests.checkpoint.test_checkpoint import random_tensors
from tests.helpers.faults import report

TINY_VQGAN = dict(image_size=16, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, codebook_size=20,
                  norm_groups=4, latent_dim=8)  # fmt: skip


def runs(path):
    """A pickle, written by hand, that makes a folder when it is opened."""
    return f"cos\nmkdir\n(S'{path}'\ntR.".encode()


def test_a_pickle_in_the_place_of_tensors_is_refused_and_does_not_run(tmp_path):
    began, made = time.monotonic(), tmp_path / "made"
    weightsdir.save(str(tmp_path / "weights"), random_tensors(1), VqganConfig())
    for name in ("model.safetensors", "config.json", "hashes.json"):
        path = tmp_path / "weights" / name
        kept = path.read_bytes()
        path.write_bytes(runs(made).ljust(len(kept)))
        with pytest.raises(ValueError, match=name):
            weightsdir.load(str(tmp_path / "weights"), VqganConfig)
        path.write_bytes(kept)
    weightsdir.load(str(tmp_path / "weights"), VqganConfig)
    for name in ("state", "commit.json"):
        workdir = str(tmp_path / name)
        folder = store.save(workdir, 5, store.whole(random_tensors(1)), {}, 1)
        (file,) = [entry for entry in os.listdir(folder) if entry.startswith(name)]
        size = os.path.getsize(f"{folder}/{file}")
        with open(f"{folder}/{file}", "wb") as out:
            out.write(runs(made).ljust(size))
        with pytest.raises(ValueError, match="step_00000005: damaged"):
            store.restore(workdir)
    assert not made.exists()
    report("pickles in the place of tensors and JSON", 5, 0, began, "refused, none ran")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "hashes.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_what_is_no_file_in_a_folder_of_weights_is_not_opened(tmp_path, name, kind):
    """A pipe would be waited for, a device read, without end."""
    folder = tmp_path / "weights"
    weightsdir.save(str(folder), random_tensors(1), VqganConfig())
    (folder / name).unlink()
    if name != "hashes.json":
        (folder / "hashes.json").unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "device":
        (folder / name).symlink_to("/dev/zero")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        with open(folder / name, "wb") as file:
            file.truncate(2**40)  # a hole: no disk is used
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"^{folder}/{name}: "):
        weightsdir.load(str(folder), VqganConfig)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_a_pipe_among_records_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.tfrecord")
    with pytest.raises(ValueError, match="a.tfrecord: must be a regular file"):
        records.index(str(tmp_path / "a.tfrecord"))
    with RecordWriter(str(tmp_path / "b.tfrecord")) as writer:
        writer.write(b"1234")
    path = shard_index.path_of(str(tmp_path / "b.tfrecord"))
    os.mkfifo(path)
    with pytest.raises(ValueError, match="must be a regular file"):
        shard_index.read(str(tmp_path / "b.tfrecord"))
    os.unlink(path)
    with open(path, "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="is the index of a larger shard than"):
        shard_index.read(str(tmp_path / "b.tfrecord"))


@pytest.mark.parametrize("text", [b"[" * 10**6, b'{"a":' * 10**5, b"9" * 10**6, b"\xff", b"[]", b"null", b'"x"', b""])
def test_absurd_json_is_one_short_line(tmp_path, text):
    weightsdir.save(str(tmp_path), random_tensors(1), VqganConfig())
    for name in ("hashes.json", "config.json"):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=f"^{tmp_path}/{name}: not ") as error:
            weightsdir.load(str(tmp_path), VqganConfig)
        assert str(error.value).isprintable() and len(str(error.value)) < 500
        (tmp_path / "hashes.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name, value", [
    ("channels", 0), ("channels", 10**9), ("channels", -1), ("channels", "8"), ("channels", 8.0), ("channels", True),
    ("channels", None), ("channels", [8]), ("channels", {"a": 1}), ("channel_multipliers", [1, 10**9]),
    ("channel_multipliers", [1, [2]]), ("channel_multipliers", 3), ("codebook_size", 2**40), ("pixel_low", "x" * 10**6),
    ("num_res_blocks", 10**12), ("a\n\x1b[2J", 1),
])  # fmt: skip
def test_settings_that_cannot_be_are_named(tmp_path, name, value):
    weightsdir.save(str(tmp_path), random_tensors(1), VqganConfig())
    (tmp_path / "hashes.json").unlink()
    values = json.loads((tmp_path / "config.json").read_text()) | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: ") as error:
        weights.load_vqgan(str(tmp_path))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


@pytest.mark.parametrize("changes", [{"codebook_size": 2**24, "latent_dim": 65536}, {"channels": 65536},
                                     {"num_res_blocks": 1024, "channels": 4096}])  # fmt: skip
def test_a_network_that_is_larger_than_its_file_is_not_built(tmp_path, changes):
    began = time.monotonic()
    config = VqganConfig(**TINY_VQGAN)
    weightsdir.save(str(tmp_path), VQGAN(config).state_dict(), config)
    weights.load_vqgan(str(tmp_path))
    values = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "hashes.json").unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: more numbers than there are$"):
        weights.load_vqgan(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # KiB
    assert time.monotonic() - began < 60


def test_names_that_are_no_names_come_out_escaped_in_one_line(tmp_path):
    config = VqganConfig(**TINY_VQGAN)
    tensors = VQGAN(config).state_dict() | {"x\n\n\t\x1b]0;title\x07" + "y" * 5000: torch.ones(2)}
    weightsdir.save(str(tmp_path), tensors, config)
    with pytest.raises(ValueError, match="Unexpected key") as error:
        weights.load_vqgan(str(tmp_path))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_a_header_of_tensors_that_claims_terabytes_allocates_nothing(tmp_path):
    weightsdir.save(str(tmp_path), random_tensors(1), VqganConfig())
    (tmp_path / "hashes.json").unlink()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length, header in ((2**62, b""), (None, {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})):
        text = json.dumps(header).encode() if length is None else header
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text)
        with pytest.raises(ValueError, match="model.safetensors: "):
            weightsdir.load(str(tmp_path), VqganConfig)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def bomb(form, side):
    """A picture of a few hundred bytes whose header says that it has so many pixels on each side."""
    data = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(data, form)
    data = bytearray(data.getvalue())
    if form == "JPEG":
        place = data.index(b"\xff\xc0") + 5  # behind marker, length and precision
        data[place : place + 4] = struct.pack(">HH", side, side)
    else:
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("side, said", [(9000, "9000 x 9000 pixels, above --max_image_pixels=50000000"),
                                        (65_000, "4225000000 pixels")])  # fmt: skip
def test_a_bomb_of_pixels_is_refused_by_its_header(form, side, said):
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said):
        images.decode(bomb(form, side), 64, 50_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB; pixels would take 230 MiB, 12 GiB
    report(f"a {form} header of {side} x {side} pixels", 1, 0, began, "refused")
