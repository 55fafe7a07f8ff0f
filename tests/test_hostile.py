"""Files made to harm whoever opens them: refused in one line, before they run or fill anything."""

import io
import json
import os
import resource
import struct
import time
import zlib

import pytest
from PIL import Image

from itit import checkpoint, weightsdir
from itit.config import VqganConfig
from itit.data import images
from tests.faults import report
from tests.test_checkpoint import random_tensors


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
        folder = checkpoint.save(workdir, 5, checkpoint.whole(random_tensors(1)), {}, 1)
        (file,) = [entry for entry in os.listdir(folder) if entry.startswith(name)]
        size = os.path.getsize(f"{folder}/{file}")
        with open(f"{folder}/{file}", "wb") as out:
            out.write(runs(made).ljust(size))
        with pytest.raises(ValueError, match="step_00000005: damaged"):
            checkpoint.restore(workdir)
    assert not made.exists()
    report("pickles in the place of tensors and JSON", 5, 0, began, "refused, none ran")


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
