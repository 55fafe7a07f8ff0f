"""The programs of a step traced from placeholders: which there are, how often, and what they read and update."""

import math

import pytest
import torch

from itit.config import VqganConfig
from itit.train_step import tasks
from itit.xla.sharding import BATCH
from itit.xla.tracing import TracedMesh
from tests.helpers.backend_parity import config_of
from tests.helpers.tiny import make_state
from tests.xla.devices.small import NUM_DEVICES
from tools.tpu import step_programs

VQGAN = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                    codebook_size=32)  # fmt: skip


@pytest.mark.skipif(math.prod(step_programs.TRACED) != NUM_DEVICES, reason="traced on eight devices")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_programs_of_a_step_from_nothing(dtype):
    config = config_of(ema_decay=0.9, synth_drop_masked=True, num_decode_steps=4, image_size=16, compute_dtype=dtype)
    found = step_programs.programs(config, tasks(config, 0), VQGAN)
    calls = {}
    for program in found:
        calls[program.name] = calls.get(program.name, 0) + program.calls
    cast = {"_cast_weights": 1} if dtype == "bf16" else {}
    assert calls == cast | {"prepare": 1, "_start_picture": 1, "_new_canvas": 1, "decode_step": 4, "_start_caption": 1,
                     "_new_caption": 1, "greedy_steps": 1, "update": 1}  # fmt: skip
    assert sum(program.name == "decode_step" for program in found) == 2  # with tokens dropped, and without
    update = found[-1]
    assert len(update.donated) == len(update.outputs) - 10
    tensors = make_state(config, 0).tensors().values()
    updated = [math.prod(update.outputs[result][0]) for _, result in update.donated]
    assert sum(updated) == sum(t.numel() for t in tensors) and len(updated) < len(tensors) / 3  # packed
    for program in found:
        assert all(len(shape) == len(spec) or spec == () for shape, spec in program.inputs + program.outputs)
        for parameter, result in program.donated:
            assert program.inputs[parameter] == program.outputs[result]
        assert set(program.specs) and len(program.hlo) > 1000
    images = [spec for shape, spec in found[0].inputs if shape == (8, 16, 16, 3)]
    assert len(images) == 4 and set(images) == {(BATCH, None, None, None)}


@pytest.mark.skipif(math.prod(step_programs.TRACED) != NUM_DEVICES, reason="traced on eight devices")
def test_placeholders_take_no_memory():
    mesh = TracedMesh(2, 4, "highest")
    weight = mesh.placeholder((2**20, 2**20), torch.float32, ("fsdp", None))  # 4 TiB
    total = mesh.run(doubled, weight, updates=[weight])
    (program,) = mesh.run.programs
    assert total.shape == () and weight.shape == (2**20, 2**20)
    assert program.inputs[program.donated[0][0]] == ((2**20, 2**20), ("fsdp", None)) == program.outputs[0]


def doubled(weight):
    weight.mul_(2)
    return weight.sum()
