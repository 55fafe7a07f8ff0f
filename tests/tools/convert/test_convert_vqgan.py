"""From a published file to a folder for --vqgan, and every way in which that is refused."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from itit.checkpoint import weightsdir
from itit.checkpoint.weights import load_vqgan
from itit.config import VqganConfig
from tests.helpers import foreign_weights
from tests.helpers.common import ROOT
from tests.helpers.public_vqgans import Reference, maskgit, spread_codes, taming
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.convert_vqgan import convert, locate

SIDE = 32
SMALL = {"widths": (32, 32, 64), "num_blocks": 1}  # 4 pixels a token


def small_taming():
    return taming(**SMALL, attention=(2,))


def run(path, output, layout="auto", pixel_range="", image_size=SIDE):
    return convert(str(path), str(output), layout, pixel_range, image_size)


@pytest.mark.parametrize("form", ["safetensors", "folder", "bin", "ckpt"])
def test_a_converted_tokenizer_loads_and_computes_the_same(tmp_path, form):
    state, source = small_taming(), tmp_path / "theirs"
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    spread_codes(state, Reference(state).features(images))
    source.mkdir()
    path = source / "last.ckpt"
    if form == "ckpt":
        foreign_weights.write_lightning(path, state | {"loss.discriminator.main.0.weight": torch.ones(2)})
    else:
        path = source / ("pytorch_model.bin" if form == "bin" else "model.safetensors")
        foreign_weights.write(source, state, path.suffix[1:])
    config = run(source if form == "folder" else path, tmp_path / "ours")
    model = load_vqgan(str(tmp_path / "ours"))
    assert model.config == config and config.family == "taming" and (config.pixel_low, config.pixel_high) == (-1, 1)
    reference = Reference(state)
    ids = reference.ids(images)
    assert torch.equal(model.encode(images), ids)
    assert (model.decode(ids) - reference.pictures(ids, SIDE // 4)).abs().max() < 1e-4
    hashes = json.loads((tmp_path / "ours" / "hashes.json").read_text())
    assert hashes["source"][path.name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashes["source"]["layout"] == "taming"


def test_pixels_and_norms_that_shapes_do_not_tell(tmp_path):
    source = tmp_path / "theirs"
    source.mkdir()
    foreign_weights.write(source, maskgit(**SMALL))
    config = run(source, tmp_path / "a")
    assert (config.pixel_low, config.pixel_high, config.norm_groups) == (0, 1, 32)
    (source / "config.json").write_text(json.dumps({"norm_num_groups": 16}))
    found = run(source, tmp_path / "b", pixel_range="-1,1")
    assert found == dataclasses.replace(config, pixel_low=-1.0, norm_groups=16)
    (source / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json: not a JSON object"):
        run(source, tmp_path / "c")
    (source / "config.json").write_text('{"norm_num_groups": "many"}')
    with pytest.raises(ValueError, match="norm_num_groups='many': must be a whole number above 0"):
        run(source, tmp_path / "c")


def test_attention_under_the_names_of_diffusers_needs_a_range(tmp_path):
    state = {}
    for name, tensor in small_taming().items():
        for level in range(3):
            name = name.replace(f"down.{level}.block", f"down_blocks.{level}.resnets")
            name = name.replace(f"down.{level}.attn", f"down_blocks.{level}.attentions")
            name = name.replace(f"down.{level}.downsample", f"down_blocks.{level}.downsamplers.0")
            name = name.replace(f"up.{level}.block", f"up_blocks.{2 - level}.resnets")
            name = name.replace(f"up.{level}.attn", f"up_blocks.{2 - level}.attentions")
            name = name.replace(f"up.{level}.upsample", f"up_blocks.{2 - level}.upsamplers.0")
        name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
        name = name.replace("mid.attn_1", "mid_block.attentions.0")
        for ours, theirs in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"),
                             ("proj_out", "to_out.0")):  # fmt: skip
            for block in range(2):
                name = name.replace(f"attentions.{block}.{ours}.", f"attentions.{block}.{theirs}.")
        state[name.replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")] = tensor
    foreign_weights.write(tmp_path, state)
    with pytest.raises(ValueError, match="say what its pixels are: --pixel_range=0,1 or -1,1"):
        run(tmp_path, tmp_path / "ours")
    assert run(tmp_path, tmp_path / "ours", pixel_range="-1,1").middle_attention


def test_what_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="no .safetensors, .ckpt, .bin, .pt, .pth in it"):
        run(tmp_path, tmp_path / "ours")
    foreign_weights.write(tmp_path, small_taming())
    with pytest.raises(ValueError, match=f"^{path}: not openMUSE MaskGitVQGAN .*: encoder.*"):
        run(path, tmp_path / "ours", layout="maskgit")
    with pytest.raises(ValueError, match="image_size=30: must be a multiple of 4"):
        run(path, tmp_path / "ours", image_size=30)
    with pytest.raises(ValueError, match="must be a folder or end in .safetensors"):
        run(tmp_path / "model.zip", tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    with pytest.raises(ValueError, match="already there"):
        run(path, tmp_path / "ours")
    safetensors.torch.save_file(small_taming(), tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match="holds model.safetensors, second.safetensors; name the file"):
        run(tmp_path, tmp_path / "other")
    (tmp_path / "second.safetensors").rename(tmp_path / "model.fp16.safetensors")
    assert locate(str(tmp_path)) == str(path)
    state = small_taming()
    state["decoder.mid.block_1.conv1.weight"][0, 0, 0, 0] = float("nan")
    foreign_weights.write(tmp_path, state)
    with pytest.raises(ValueError, match="decoder.*conv1.weight holds NaN or infinity"):
        run(path, tmp_path / "other")
    foreign_weights.write(tmp_path, {"vocab": torch.ones(3)})
    with pytest.raises(ValueError, match=f"^{path}: no known layout"):
        run(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_or_impossible_tokenizer_is_not_loaded(tmp_path):
    foreign_weights.write(tmp_path, maskgit(**SMALL))
    folder = tmp_path / "ours"
    run(tmp_path / "model.safetensors", folder)
    config, weights = weightsdir.load(str(folder), VqganConfig)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="model.safetensors: damaged or replaced"):
        load_vqgan(str(folder))
    for change, message in (({"pixel_low": 1.0}, "pixel_low=1.0: must be finite and below pixel_high=1.0"),
                            ({"codebook_size": 7}, "does not fit config.json: size mismatch for codebook.weight"),
                            ({"family": "other"}, "config.json: family=other: must be one of plain, maskgit, taming"),
                            ({"norm_groups": 24}, "config.json: norm_groups=24: must be 0 or a divisor"),
                            ({"pixel_high": "1"}, "config.json: ")):  # fmt: skip
        weightsdir.save(str(folder), weights, dataclasses.replace(config, **change))
        with pytest.raises(ValueError, match=message):
            load_vqgan(str(folder))
    weights["codebook.weight"][3, 2] = float("inf")
    with pytest.raises(ValueError, match="not written: codebook.weight holds NaN or infinity"):
        weightsdir.save(str(folder), weights, config)
    weightsdir.save(str(folder), weights | {"codebook.weight": torch.zeros(1)}, config)
    (folder / "hashes.json").unlink()
    safetensors.torch.save_file(weights, str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="model.safetensors: codebook.weight holds NaN or infinity"):
        load_vqgan(str(folder))


def test_the_command(tmp_path):
    foreign_weights.write(tmp_path, maskgit(**SMALL, mage=True))
    command = [sys.executable, "-m", "tools.convert_vqgan", f"--checkpoint={tmp_path}", f"--output={tmp_path}/ours",
               f"--image_size={SIDE}"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layout mage, 200 codes of width 12, 32 x 32 pixels from 0 to 1, 8 x 8 tokens" in done.stdout
    again = subprocess.run([*command, "--layout=maskgit"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
    assert again.stderr.startswith("error: ") and "encoder.mid.0.norm1.weight is absent" in again.stderr
