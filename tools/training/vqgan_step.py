"""One step of the image tokenizer's training, plain torch: what `tools.train_vqgan` repeats.

The recipe is MaskGIT's (arXiv:2202.04200): reconstruction, perceptual distance, a non-saturating GAN with R1,
commitment, and a codebook that follows running means. Its encoder first learns without rounding; then codes are drawn
from its outputs, far from each other. While learning goes on, codes that nothing uses move to badly rounded outputs.

A step is one program (see itit/program.py) and now and then, before it, a call that moves codes on the host.

Shapes: B batch, S picture side, G grid side, D code width, C codebook, M = B * G * G outputs of a batch.
"""

import dataclasses
import math
import zlib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from itit import train_step
from itit.checkpoint.pieces import whole_index
from itit.config import knob
from itit.models.vqgan import VQGAN
from itit.optim import Ema
from itit.program import program, running
from tools.training import codes as codes_lib
from tools.training import discriminator as gan
from tools.training import perceptual as perceptual_lib
from tools.training.adam import Adam

PLAIN_SHARE = 0.2  # of the steps before rounding begins
REVIVAL_END = 0.8  # share of the steps after which the codes only settle
REVIVAL_EVERY = 20
LR_WARMUP_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is minimised, and how. The squared error, of pixels as the network sees them, has weight 1."""

    num_steps: int = knob(1000, "Optimizer steps.")
    batch_size: int = knob(32, "Pictures a step.")
    learning_rate: float = knob(2e-3, "Peak learning rate of Adam; cosine to 0.")
    adam_beta1: float = knob(0.9, "Decay of Adam's first moment; MaskGIT: 0.")
    l1_weight: float = knob(0.2, "Weight of the absolute error: on plain grounds the sign of an error is mostly noise, "
                            "on sharp drawings it helps; MaskGIT: 0.")  # fmt: skip
    commitment_weight: float = knob(0.25, "Weight of the encoder's distance to its codes.")
    perceptual_weight: float = knob(0.0, "Weight of the perceptual distance; MaskGIT: 0.1.")
    perceptual: str = knob("", "File with the image network of that distance: SqueezeNet 1.0 or VGG16.")
    perceptual_linear: str = knob("", "File with LPIPS's linear weights for that network; empty: all ones.")
    adversarial_weight: float = knob(0.0, "Weight of the discriminator's say; MaskGIT: 0.1; 0: no discriminator.")
    adversarial_start: int = knob(0, "Step (from 0) at which the discriminator joins.")
    discriminator_channels: int = knob(64, "Filters of the discriminator's first level.")
    discriminator_learning_rate: float = knob(1e-4, "Its peak learning rate.")
    r1_weight: float = knob(10.0, "Weight of half the squared gradient of its scores by real pictures (R1).")
    r1_every: int = knob(16, "Steps between R1's, each weighing as much as the steps that it stands for.")
    ema_decay: float = knob(0.0, "Decay of the averaged weights, which are written at the end; 0: off.")

    def check(self, image_size):
        """Raises ValueError, one line, for a value that cannot be."""
        rules = [("num_steps", 1, math.inf), ("batch_size", 1, math.inf), ("learning_rate", 0, math.inf),
                 ("adam_beta1", 0, 0.9999), ("l1_weight", 0, math.inf), ("commitment_weight", 0, math.inf),
                 ("perceptual_weight", 0, math.inf), ("adversarial_weight", 0, math.inf),
                 ("adversarial_start", 0, math.inf), ("discriminator_channels", 1, math.inf),
                 ("discriminator_learning_rate", 0, math.inf), ("r1_weight", 0, math.inf), ("r1_every", 1, math.inf),
                 ("ema_decay", 0, 0.999999)]  # fmt: skip
        for name, low, high in rules:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"--{name}={getattr(self, name)}: must be in [{low}, {high}]")
        if bool(self.perceptual) != (self.perceptual_weight > 0):
            raise ValueError(f"--perceptual={self.perceptual or '(empty)'}: goes with a --perceptual_weight above 0, "
                             f"and that is {self.perceptual_weight}")  # fmt: skip
        if self.perceptual and image_size < perceptual_lib.MIN_SIDE:
            raise ValueError(f"--image_size={image_size}: the perceptual distance needs {perceptual_lib.MIN_SIDE}")


class Networks(nn.Module):
    """All that is trained. `discriminator` is None where it has no weight."""

    def __init__(self, config, recipe):
        super().__init__()
        self.vqgan = VQGAN(config)
        self.vqgan.codebook.requires_grad_(False)  # it follows running means
        wanted = recipe.adversarial_weight > 0
        self.discriminator = gan.Discriminator(config.image_size, recipe.discriminator_channels) if wanted else None


class State(NamedTuple):
    """All that a step reads and changes. `perceptual` is frozen; it, the second optimizer and `ema` may be None."""

    model: Networks
    perceptual: nn.Module | None
    codes: codes_lib.CodeAverages
    optimizer: Adam
    discriminator_optimizer: Adam | None
    ema: Ema | None

    averaged = train_step.State.averaged

    def tensors(self):
        """Every trained tensor by name, to save or to load in place."""
        tensors = {f"model/{name}": p for name, p in self.model.named_parameters()}
        parts = {"codes": self.codes, "optimizer": self.optimizer, "discriminator_optimizer":
                 self.discriminator_optimizer, "ema": self.ema}  # fmt: skip
        for part, owner in parts.items():
            if owner is not None:
                tensors |= {f"{part}/{name}": tensor for name, tensor in owner.state().items()}
        return tensors

    def placed_rows(self):
        return ()


def make_state(config, recipe, seed, backend):
    """A fresh State from the seed. `config`: VqganConfig."""
    torch.manual_seed(seed)
    model = backend.adopt(Networks(config, recipe))
    perceptual = None
    if recipe.perceptual_weight:
        perceptual = backend.adopt(perceptual_lib.load(recipe.perceptual, recipe.perceptual_linear))
    named = list(model.named_parameters())
    drawing = [(name, p) for name, p in named if name.startswith("vqgan.")]
    judging = [(name, p) for name, p in named if name.startswith("discriminator.")]
    state = State(
        model,
        perceptual,
        codes_lib.CodeAverages(model.vqgan.codebook.weight.detach()),
        Adam(drawing, recipe.adam_beta1, 0.99),
        Adam(judging, recipe.adam_beta1, 0.99) if judging else None,
        Ema(drawing, recipe.ema_decay) if recipe.ema_decay else None,
    )
    backend.place_state(state)
    return state


class Phase(NamedTuple):
    """What a step does: rounds to codes, trains with the discriminator, takes its gradient penalty."""

    rounding: bool
    adversarial: bool
    penalty: bool


def phase_of(recipe, step):
    since = step - recipe.adversarial_start
    adversarial = recipe.adversarial_weight > 0 and since >= 0
    return Phase(step >= int(PLAIN_SHARE * recipe.num_steps), adversarial,
                 adversarial and recipe.r1_weight > 0 and since % recipe.r1_every == 0)  # fmt: skip


def rate_of(recipe, step):
    """Learning rate of a step (from 0): a short linear warm-up, and a cosine over all steps."""
    warmup = min(1.0, (step + 1) / LR_WARMUP_STEPS)
    return recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / recipe.num_steps))


def step(state, pixels, number, recipe, seed, backend):
    """One optimizer step.

    Args:
      pixels: uint8 [B, S, S, 3] on the devices.
      number: of the step, from 0.

    Returns:
      name -> number or tensor, 0-d, on the device.
    """
    if places_codes(recipe, number):
        place_codes(state, pixels, number, recipe, seed, backend)
    phase, rate = phase_of(recipe, number), rate_of(recipe, number)
    factors = [state.optimizer.factors(rate, number + 1)]
    if phase.adversarial:
        share = rate / recipe.learning_rate if recipe.learning_rate else 0.0
        judge, count = recipe.discriminator_learning_rate * share, number - recipe.adversarial_start + 1
        factors.append(state.discriminator_optimizer.factors(judge, count))
    with running(backend.run):
        return update(state, pixels, factors, recipe, phase) | {"learning_rate": rate}


@program(varying=("factors",), updates=lambda state, *_: state.tensors().values())
def update(state, pixels, factors, recipe, phase):
    """Losses, gradients and both optimizers' steps, in place. Returns name -> tensor, 0-d."""
    vqgan, discriminator = state.model.vqgan, state.model.discriminator
    images = vqgan.from_pixels(pixels)
    losses, drawn, outputs, ids = generator_losses(state, images, phase)
    loss = weighted(losses, recipe)
    gradients = state.optimizer.gradients(loss)
    values = {"loss": loss} | {f"loss/{name}": value for name, value in losses.items()}
    if phase.adversarial:
        real, fake = (unit_pictures(vqgan, x.detach()) * 2 - 1 for x in (images, drawn))
        judged = discriminator_losses(discriminator, real, fake, phase.penalty)
        judgement = judged["discriminator"] + 0.5 * recipe.r1_weight * recipe.r1_every * judged.get("r1", 0.0)
        state.discriminator_optimizer.step(state.discriminator_optimizer.gradients(judgement), factors[1])
        values |= {f"gan/{name}": value for name, value in judged.items()}
    state.optimizer.step(gradients, factors[0])
    if phase.rounding:
        values["codes/used"] = state.codes.update(vqgan.codebook.weight, outputs, ids.flatten())
        values["codes/perplexity"] = state.codes.perplexity()
    if state.ema is not None:
        state.ema.update(state.model.named_parameters(), torch.isfinite(loss.detach()))
    return {name: value.detach() for name, value in values.items()}


def generator_losses(state, images, phase):
    """What the tokenizer is trained on, from images [B, 3, S, S] as it sees them.

    Returns:
      name -> loss, 0-d; the drawn pictures [B, 3, S, S]; the encoder's outputs [M, D] without gradient; and the codes
      that they were rounded to, int64 [B, N], or None without rounding.
    """
    vqgan = state.model.vqgan
    features = vqgan.encoder(images)  # [B, D, G, G]
    outputs = features.detach().permute(0, 2, 3, 1).flatten(0, 2)  # [M, D]
    commitment, codes, ids = features.new_zeros(()), features, None
    if phase.rounding:
        ids, rounded = vqgan.quantize(features.detach())
        commitment = F.mse_loss(features, rounded)
        codes = features + (rounded - features).detach()  # the gradient passes straight through
    drawn = vqgan.decoder(codes)
    losses = {"l2": F.mse_loss(drawn, images), "l1": F.l1_loss(drawn, images), "commitment": commitment}
    if state.perceptual is not None:
        losses["perceptual"] = state.perceptual(unit_pictures(vqgan, drawn), unit_pictures(vqgan, images))
    if phase.adversarial:
        losses["adversarial"] = gan.generator_loss(state.model.discriminator(unit_pictures(vqgan, drawn) * 2 - 1))
    return losses, drawn, outputs, ids


def weighted(losses, recipe):
    """The sum of the losses of `generator_losses`, each with its weight."""
    weights = {"l2": 1.0, "l1": recipe.l1_weight, "commitment": recipe.commitment_weight,
               "perceptual": recipe.perceptual_weight, "adversarial": recipe.adversarial_weight}  # fmt: skip
    return sum(weights[name] * value for name, value in losses.items())


def discriminator_losses(discriminator, real, fake, penalty):
    """name -> loss, 0-d, from pictures [B, 3, S, S] in [-1, 1] without gradient."""
    real = real.requires_grad_(penalty)
    scores = discriminator(real)
    losses = {"discriminator": gan.discriminator_loss(scores, discriminator(fake))}
    return losses | ({"r1": gan.gradient_penalty(scores, real)} if penalty else {})


def unit_pictures(vqgan, images):
    """Images as the network sees them -> [B, 3, S, S], black 0, white 1."""
    low, high = vqgan.config.pixel_low, vqgan.config.pixel_high
    return (images - low) / (high - low)


def places_codes(recipe, number):
    """Whether codes get new places before this step: the first ones of all, and later dead ones."""
    since = number - int(PLAIN_SHARE * recipe.num_steps)
    return since >= 0 and since % REVIVAL_EVERY == 0 and (since == 0 or number <= REVIVAL_END * recipe.num_steps)


def place_codes(state, pixels, number, recipe, seed, backend):
    """New places for all codes, or for dead ones, drawn on the host from what the encoder makes of this batch."""
    outputs = backend.on_host({"outputs": backend.sampler(encode, state.model.vqgan, pixels)})["outputs"]
    names = ("model/vqgan.codebook.weight", "codes/count", "codes/total")
    tensors = {name: state.tensors()[name] for name in names}
    table, count, total = backend.on_host(tensors).values()
    first = number == int(PLAIN_SHARE * recipe.num_steps)
    rows = torch.arange(len(count)) if first else codes_lib.dead(count)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {number} codes".encode()))
    codes_lib.draw(outputs, rows, table, count, total, generator)
    for (_, tensor), value in zip(tensors.items(), (table, count, total), strict=True):
        backend.fill(tensor, {whole_index(value.shape): value})


@torch.no_grad()
def encode(vqgan, pixels):
    """uint8 [B, S, S, 3] -> the encoder's outputs [M, D]."""
    return vqgan.encoder(vqgan.from_pixels(pixels)).permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def reconstruct(vqgan, pixels):
    """uint8 [B, S, S, 3] -> (its codes int64 [B, N], uint8 [B, S, S, 3] drawn from them)."""
    ids = vqgan.tokenize(pixels)
    return ids, vqgan.to_pixels(ids)
