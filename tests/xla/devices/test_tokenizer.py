"""The steps of the tokenizer's training and of T5's pre-training on a mesh, captured, against plain torch."""

import dataclasses

import numpy as np
import pytest
import torch

from itit.backends.local import Local
from itit.checkpoint.pieces import slices
from itit.config import TrainConfig, VqganConfig
from itit.program import running
from tests.helpers.tiny import randomize
from tests.xla.devices.small import MESHES, connect
from tools import pretrain_t5
from tools.training import vqgan_step
from tools.training.vqgan_step import Recipe

CONFIG = VqganConfig(image_size=8, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_dim=6,
                     codebook_size=12)  # fmt: skip
RECIPE = Recipe(num_steps=10, batch_size=8, adversarial_weight=0.1, adversarial_start=3, discriminator_channels=8,
                r1_every=2, ema_decay=0.9)  # fmt: skip
SETTINGS = pretrain_t5.Pretraining(data="x", num_text_tokens=12, vocab_size=64, bos_id=60, num_steps=10,
                                   lr_warmup_steps=2)  # fmt: skip


def away(found, expected):
    """Largest difference over the largest number of what is expected."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def copy(tensors, others, mesh):
    """Sets tensors on the mesh from those of the same names on the host."""
    for name, tensor in others.items():
        value = tensors[name].detach().clone()
        mesh.fill(tensor, {index: value[slices(index)] for index in mesh.held(tensor)})


@pytest.mark.parametrize("data, fsdp", MESHES[:1] + MESHES[1:][-1:])
def test_the_tokenizers_steps_equal_plain_torch(data, fsdp):
    """Through all phases: plain, codes placed and rounded, discriminator with and without its penalty."""
    mesh, plain = connect(data, fsdp), Local("cpu")
    made = [(vqgan_step.make_state(CONFIG, RECIPE, 4, backend), backend) for backend in (plain, mesh)]
    draws = np.random.default_rng()
    for number in range(6):
        # Adam's first steps are signs of gradients: from rounding alone, two runs would go apart.
        copy(made[0][0].tensors(), made[1][0].tensors(), mesh)
        pixels = draws.integers(0, 256, (8, 8, 8, 3), np.uint8)
        expected, found = (
            vqgan_step.step(state, backend.to_device({"x": pixels})["x"], number, RECIPE, 0, backend)
            for state, backend in made
        )
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert away(torch.as_tensor(found[name]), torch.as_tensor(value)) < 1e-4, (number, name)
        mine, others = (state.tensors() for state, _ in made)
        for name in mine:
            if "moment/" in name or name.startswith("codes/"):
                assert away(others[name], mine[name]) < 1e-3, (number, name)
    assert "gan/r1" in found and "codes/used" in found


@pytest.mark.parametrize("data, fsdp", MESHES[-1:])
def test_t5s_steps_equal_plain_torch(data, fsdp):
    mesh, plain, made = connect(data, fsdp), Local("cpu"), []
    config = dataclasses.replace(SETTINGS.config(2), train=TrainConfig(seed=2))
    for backend in (plain, mesh):
        state = pretrain_t5.make_state(config, backend)
        if backend is plain:
            randomize(state.model.decoder, 3)
            weights = {name: p.detach().clone() for name, p in state.model.named_parameters()}
        else:
            copy(weights, dict(state.model.named_parameters()), mesh)
        made.append((state, backend))
    inputs = np.random.default_rng().integers(3, 50, (8, 12))
    targets = np.random.default_rng().integers(3, 50, (8, 4))
    inputs[:, 10:], targets[:, 3:] = 0, 0
    for number in range(2):
        results = []
        for state, backend in made:
            batch = backend.to_device({"inputs": inputs, "targets": targets})
            with running(backend.run):
                results.append(pretrain_t5.update(state, batch["inputs"], batch["targets"], 1e-3, 60))
        for name, value in results[0].items():
            assert away(results[1][name], value) < 1e-4, (number, name)
