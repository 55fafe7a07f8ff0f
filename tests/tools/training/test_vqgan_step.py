"""A step of the tokenizer's training against the recipe written out with torch's own optimizers."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from itit.backends.local import Local
from itit.config import VqganConfig
from itit.data import scenes
from tests.helpers.tiny import randomize, seeds
from tools.training import perceptual, vqgan_step
from tools.training.vqgan_step import Phase, Recipe

CONFIG = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=6,
                     codebook_size=24, pixel_low=-1.0, pixel_high=2.0)  # fmt: skip
FULL = Recipe(num_steps=100, batch_size=4, perceptual_weight=0.3, perceptual="stub", adversarial_weight=0.2,
              adversarial_start=30, discriminator_channels=4, r1_every=4, ema_decay=0.9)  # fmt: skip
BACKEND = Local("cpu")


class Features(torch.nn.Module):
    """A network of one layer in the place of a large one."""

    widths = (5,)

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3)

    def forward(self, pictures):
        return [self.conv(pictures)]


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    torch.manual_seed(0)
    network = Features()
    monkeypatch.setattr(perceptual, "load", lambda path, linear: perceptual.Perceptual(network))


def pictures(count, rows=4):
    rng = np.random.default_rng()
    drawn = [[scenes.render(scenes.sample(rng, ("seen",)), rng) for _ in range(rows)] for _ in range(count)]
    return [torch.from_numpy(np.stack(batch)[:, ::4, ::4]) for batch in drawn]


def make(recipe, seed=0):
    state = vqgan_step.make_state(CONFIG, recipe, seed, BACKEND)
    randomize(state.model, seed)
    return state


def run(state, pixels, number, recipe):
    return vqgan_step.step(state, pixels, number, recipe, 0, BACKEND)


def reference(state, pixels, recipe, rate, judge_rate):
    """One step of the whole recipe from here: the new networks, straight on."""
    state = copy.deepcopy(state)
    vqgan, judge = state.model.vqgan, state.model.discriminator
    images = pixels.permute(0, 3, 1, 2) / 255 * 3 - 1
    features = vqgan.encoder(images)
    flat = features.permute(0, 2, 3, 1).reshape(-1, 6)
    ids = torch.cdist(flat, vqgan.codebook.weight).argmin(1)
    rounded = vqgan.codebook.weight[ids].view(4, 4, 4, 6).permute(0, 3, 1, 2)
    drawn = vqgan.decoder(features + (rounded - features).detach())
    unit, real = (drawn + 1) / 3, ((images + 1) / 3 * 2 - 1).requires_grad_()
    a, b = (F.normalize(state.perceptual.network(x)[0], dim=1) for x in (unit, (images + 1) / 3))
    loss = (drawn - images).square().mean() + 0.2 * (drawn - images).abs().mean()
    loss = loss + 0.25 * (features - rounded.detach()).square().mean()
    loss = loss + 0.3 * (a - b).square().sum(1).mean()
    loss = loss - 0.2 * torch.sigmoid(judge(unit * 2 - 1)).log().mean()
    scores = judge(real)
    (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
    judgement = -torch.sigmoid(scores).log().mean() - torch.sigmoid(-judge((unit * 2 - 1).detach())).log().mean()
    judgement = judgement + 5 * 4 * slope.square().flatten(1).sum(1).mean()
    drawing = [p for name, p in vqgan.named_parameters() if name != "codebook.weight"]
    judging = list(judge.parameters())
    for part, value, lr in ((drawing, loss, rate), (judging, judgement, judge_rate)):
        for p, gradient in zip(part, torch.autograd.grad(value, part, retain_graph=True), strict=True):
            p.grad = gradient
        part.append(lr)
    for *part, lr in (drawing, judging):
        torch.optim.Adam(part, lr, betas=(recipe.adam_beta1, 0.99)).step()
    return state.model, ids, loss, judgement


@pytest.mark.parametrize("seed", seeds(2))
def test_a_step_is_the_recipe(seed):
    recipe = dataclasses.replace(FULL, adversarial_start=0, num_steps=1, learning_rate=1e-2)
    state, (pixels,) = make(recipe, seed), pictures(1)
    average = {name: value.clone() for name, value in state.ema.average.items()}
    # 1 / 20 of the rate is that of a warm-up's first step.
    expected, ids, loss, judgement = reference(state, pixels, recipe, 1e-2 / 20, 1e-4 / 20)
    table = state.model.vqgan.codebook.weight.clone()
    factors = [state.optimizer.factors(vqgan_step.rate_of(recipe, 0), 1),
               state.discriminator_optimizer.factors(1e-4 / 20, 1)]  # fmt: skip
    values = vqgan_step.update(state, pixels, factors, recipe, Phase(True, True, True))
    torch.testing.assert_close(values["loss"], loss.detach(), rtol=1e-4, atol=1e-6)
    mine = values["gan/discriminator"] + 0.5 * 10 * 4 * values["gan/r1"]
    torch.testing.assert_close(mine, judgement.detach(), rtol=1e-4, atol=1e-6)
    assert values["codes/used"] == len(ids.unique())
    own = dict(state.model.named_parameters())
    for name, p in expected.named_parameters():
        if name == "vqgan.codebook.weight":
            assert torch.equal(p, table)  # no gradient reaches it: running means move it
            continue
        # A first step of Adam is the gradient's sign; where that is all rounding, the sign may differ.
        away = (own[name] - p).abs() > 1e-5
        assert away.float().mean() < 0.02, name
        if name in average:
            torch.testing.assert_close(state.ema.average[name], 0.9 * average[name] + 0.1 * own[name])
    assert not any(name.startswith("discriminator") for name in average)


@pytest.mark.parametrize("seed", seeds(1))
def test_gradients_that_should_be_zero_are_zero(seed):
    state, (pixels,) = make(FULL, seed), pictures(1)
    images = state.model.vqgan.from_pixels(pixels)
    losses, drawn, _, _ = vqgan_step.generator_losses(state, images, Phase(True, True, False))
    judged = vqgan_step.discriminator_losses(state.model.discriminator, images.detach(), drawn.detach(), True)
    encoder, decoder = list(state.model.vqgan.encoder.parameters()), list(state.model.vqgan.decoder.parameters())
    judge = list(state.model.discriminator.parameters())

    def reaches(loss, parameters):
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return any(gradient is not None and gradient.abs().max() > 0 for gradient in found)

    for name in ("discriminator", "r1"):  # the discriminator's losses leave the tokenizer alone
        assert reaches(judged[name], judge) and not reaches(judged[name], encoder + decoder)
    for name in ("l2", "l1", "perceptual", "adversarial"):
        assert reaches(losses[name], encoder) and reaches(losses[name], decoder), name
    assert reaches(losses["commitment"], encoder) and not reaches(losses["commitment"], decoder)
    assert not any(reaches(losses[name], judge) for name in ("l2", "l1", "perceptual", "commitment"))
    table = state.model.vqgan.codebook.weight
    assert not table.requires_grad and not any(p.requires_grad for p in state.perceptual.parameters())
    # The adversarial loss does depend on the discriminator's weights; the generator's optimizer has none of them.
    assert not any(name.startswith("discriminator") for name in state.optimizer.parameters)
    assert all(name.startswith("discriminator") for name in state.discriminator_optimizer.parameters)


def test_the_gradient_passes_straight_through():
    """The encoder gets the gradient by the rounded codes as if they were its outputs, and commitment's."""
    state, (pixels,) = make(Recipe(num_steps=100)), pictures(1)
    vqgan = state.model.vqgan
    images = vqgan.from_pixels(pixels)
    losses, *_ = vqgan_step.generator_losses(state, images, Phase(True, False, False))
    weight = vqgan.encoder.conv_in.weight
    (found,) = torch.autograd.grad(vqgan_step.weighted(losses, Recipe()), weight)
    features = vqgan.encoder(images)
    _, codes = vqgan.quantize(features.detach())
    leaf = codes.clone().requires_grad_()
    result = vqgan.decoder(leaf)
    loss = (result - images).square().mean() + 0.2 * (result - images).abs().mean()
    (through,) = torch.autograd.grad(loss, leaf)
    through = through + 0.25 * 2 * (features - codes).detach() / features.numel()
    (want,) = torch.autograd.grad(features, weight, through)
    torch.testing.assert_close(found, want)


def test_phases_and_rates():
    assert vqgan_step.phase_of(FULL, 19) == Phase(False, False, False)
    assert vqgan_step.phase_of(FULL, 20) == Phase(True, False, False)
    assert [vqgan_step.phase_of(FULL, step).penalty for step in range(30, 36)] == [True, False, False, False, True,
                                                                                  False]  # fmt: skip
    assert not vqgan_step.phase_of(Recipe(), 999).adversarial
    places = [step for step in range(100) if vqgan_step.places_codes(FULL, step)]
    assert places == [20, 40, 60, 80]
    assert vqgan_step.rate_of(FULL, 0) == pytest.approx(2e-3 / 20)
    assert vqgan_step.rate_of(FULL, 50) == pytest.approx(1e-3)


def test_loss_falls_and_most_codes_are_used():
    recipe = Recipe(num_steps=120, learning_rate=3e-3)
    state = vqgan_step.make_state(CONFIG, recipe, 0, BACKEND)
    source = pictures(8, rows=8)
    values = [run(state, source[step % 8], step, recipe) for step in range(120)]
    l2 = [value["loss/l2"].item() for value in values]
    assert np.mean(l2[-10:]) < 0.3 * np.mean(l2[:5])
    assert values[-1]["codes/used"] > 8 and 4 < values[-1]["codes/perplexity"] <= 24


def test_dead_codes_are_placed_before_their_step_and_the_rest_stay():
    recipe = Recipe(num_steps=100, learning_rate=0.0)
    state, (pixels,) = make(recipe), pictures(1)
    for number in (20, 21, 22):
        run(state, pixels, number, recipe)
    table = state.model.vqgan.codebook.weight
    dead = torch.tensor([3, 17])
    state.codes.count[dead] = 0.0
    far = torch.full((2, 6), 1e3)
    table[dead] = far
    before, outputs = table.clone(), vqgan_step.encode(state.model.vqgan, pixels)
    vqgan_step.place_codes(state, pixels, 40, recipe, 0, BACKEND)
    moved = (table != before).any(1).nonzero()[:, 0]
    assert set(dead.tolist()) <= set(moved.tolist())
    for row in table[moved]:
        assert (outputs == row).all(1).any()


@pytest.mark.parametrize("values, message", [
    (dict(perceptual_weight=0.1, perceptual=""), r"--perceptual=\(empty\): goes with a --perceptual_weight above 0"),
    (dict(perceptual_weight=0.0), "--perceptual=stub: goes with"),
    (dict(r1_every=0), r"--r1_every=0: must be in \[1, inf\]"),
    (dict(ema_decay=1.0), "--ema_decay=1.0: must be in"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FULL, **values).check(64)
    FULL.check(64)
    with pytest.raises(ValueError, match="--image_size=16: the perceptual distance needs 32"):
        FULL.check(16)
