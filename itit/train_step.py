"""One optimizer step: a batch of the three streams in, every loss of ITIT out. Plain torch; what a backend compiles.

A step is a few programs (see program.py): `prepare`, those of the synthesis inside the two cycles, and `update`.

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import contextlib
from typing import NamedTuple

import torch

from itit import inference, objectives
from itit.models import Text, cast_once, encode_text, weights_cast
from itit.optim import Adafactor, Ema
from itit.program import program
from itit.tasks import CYCLES, TASKS, batches


class Alone:
    """What a step does across the processes that share its batch, each with a part of the rows. Here, nothing: one
    process has all rows. See backends/exchange.py."""

    def sum(self, values):
        """name -> float32, 0-d, of the rows of each process -> of all rows."""
        return values

    @contextlib.contextmanager
    def summing(self, module):
        """Goes around the last backward pass of a step: after it, gradients are those of all rows."""
        yield

    def update(self, module):
        """After the optimizer's step: brings weights that another process has updated."""


class State(NamedTuple):
    """All that a step reads and changes. `t5` and `vqgan` are frozen; `vqgan` may be None where codes are ready. Where
    nothing is trained, `optimizer` and `ema` are None."""

    model: torch.nn.Module
    t5: torch.nn.Module
    vqgan: torch.nn.Module | None
    t5_of_nothing: Text
    optimizer: Adafactor | None
    ema: Ema | None
    across: Alone = Alone()

    def empty_text(self):
        return self.model.empty_text(self.t5_of_nothing)

    def placed_rows(self):
        """Tensors with a row a sample that were made outside a step."""
        return self.t5_of_nothing

    def tensors(self):
        """Every trained tensor by name, to save or to load in place."""
        tensors = {f"model/{name}": p for name, p in self.model.named_parameters()}
        if self.optimizer is not None:
            tensors |= {f"optimizer/{name}": t for name, t in self.optimizer.state().items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": t for name, t in self.ema.state().items()}
        return tensors

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the model holds the averaged weights, if there are any."""
        average = self.ema.whole() if self.ema else {}
        own = {name: p.data for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            p.data = average.get(name, p.data)
        try:
            yield
        finally:
            for name, p in self.model.named_parameters():
                p.data = own[name]


def tasks(config, step):
    """The tasks of a step and their samples: those with a batch, the cycles once their warm-up is over."""
    o = config.objective
    waiting = [cycle for cycle in CYCLES if step < getattr(o, f"{cycle}_warmup_steps")]
    return {name: size for name, size in batches(o).items() if size and name not in waiting}


def train_step(state, batch, noises, rate, config, active):
    """Runs one step.

    Args:
      batch: "task/field" -> tensor on the device: "image_ids" int64 [B, N] or "images" uint8 [B, S, S, 3], and
        "text_ids" int64 [B, L].
      noises: a `noise.Noise` for each microbatch.
      rate: learning rate.
      active: task -> samples, of this step (see `tasks`).

    Returns:
      "loss", "grad_norm", "loss/NAME", and "skipped", 1 where the update was not made (see `Adafactor.step`), else 0;
      float32, 0-d, on the device: nothing here waits for them.
    """
    parts = [prepare(state, batch, noise, noises[0], config, active, (i, len(noises)))
             for i, noise in enumerate(noises)]  # fmt: skip
    with weights_cast(state.model):
        parts = [synthesize(state, part, noise, config) for part, noise in zip(parts, noises, strict=True)]
        return update(state, parts, noises, rate, config)


def synthesize(state, part, noise, config):
    """The Microbatch with what the cycles make by the inference pipelines: pictures from texts, texts from pictures.

    Nothing here has a gradient; the weights are those before the step.
    """
    makes = {task: TASKS[task].makes for task in tasks_of(part) if TASKS[task].makes}
    if not makes:
        return part
    images, texts, model, empty = {}, {}, state.model, part.empty
    with inference.inference_mode(model):
        for task, kind in makes.items():
            if kind == "picture":
                images[task] = objectives.synthesize_image(
                    model, part.texts[task], empty, noise, config.objective, config.decode
                )
            else:
                texts[task] = objectives.synthesize_text(model, part.image_ids[task], empty)
    return part._replace(image_ids=part.image_ids | images, text_ids=part.text_ids | texts)


@program(varying=("rate",), updates=lambda state, *_: state.tensors().values())
def update(state, parts, noises, rate, config):
    """Losses, gradients and the optimizer's step, in place. Returns what `train_step` returns."""
    totals = state.across.sum({name: sum(part.totals[name] for part in parts) for name in parts[0].totals})
    metrics = {}
    state.model.train()
    for index, (part, noise) in enumerate(zip(parts, noises, strict=True)):
        noise.start_dropout(state.model, index == 0)
        with cast_once(state.model):
            losses = compute_losses(state, part, totals, noise, config)
        loss = sum(getattr(config.objective, f"{name}_weight") * value for name, value in losses.items())
        with state.across.summing(state.model) if index == len(parts) - 1 else contextlib.nullcontext():
            loss.backward()
        for name, value in [("loss", loss), *((f"loss/{name}", value) for name, value in losses.items())]:
            metrics[name] = metrics.get(name, 0.0) + value.detach()
    metrics = state.across.sum(metrics)
    metrics["grad_norm"], made = state.optimizer.step(rate, torch.isfinite(metrics["loss"]))
    state.across.update(state.model)
    if state.ema is not None:
        state.ema.update(state.model.named_parameters(), made)
    metrics["skipped"] = 1 - made.float()
    return metrics


class Microbatch(NamedTuple):
    """A microbatch ready to be learned from: per task the image ids, text ids and Text; per pass the Masking.

    `empty` is the empty Text, of one row, without gradient.
    """

    image_ids: dict
    text_ids: dict
    texts: dict
    empty: Text
    maskings: dict
    totals: dict


def tasks_of(part):
    """The tasks that a Microbatch has samples of, in the order of the table."""
    return [task for task in TASKS if task in part.image_ids or task in part.text_ids]


def compute_losses(state, part, totals, noise, config):
    """Every loss of a microbatch: name -> float32, 0-d, its share of the loss of the whole batch."""
    empty, losses = state.empty_text(), {}
    for task in tasks_of(part):
        row = TASKS[task]
        given = objectives.Given(
            part.image_ids.get(task), part.text_ids.get(task), part.texts.get(task), empty,
            {name: part.maskings[name] for name in row.passes}, {name: totals[name] for name in row.losses},
        )  # fmt: skip
        found = getattr(objectives, task)(state.model, state.t5, given, noise, config.objective)
        if found.keys() != row.losses.keys():
            raise ValueError(f"objectives.{task} returns {[*found]}, its row in tasks.py has {[*row.losses]}")
        losses |= found
    return losses


@program
def prepare(state, batch, noise, whole, config, active, part):
    """Tokenizes pictures, encodes texts and draws the masks: what needs no gradient, once for all tasks.

    Args:
      noise, whole: the microbatch's own noise, and that of the batch.
      part: (index, number) of the microbatches that every task is cut into. Tasks that are not active are left out.

    Returns:
      Microbatch.
    """
    index, number = part
    pictures, image_ids, text_ids = {}, {}, {}
    for key, value in batch.items():
        task, field = key.split("/")
        if task in active:
            fields = {"images": pictures, "image_ids": image_ids, "text_ids": text_ids}[field]
            fields[task] = value.chunk(number)[index]
    if pictures:
        with torch.no_grad():
            image_ids |= _joined(state.vqgan.tokenize, pictures)
    encoded = [task for task in text_ids if TASKS[task].features]
    texts = {}
    if encoded:
        mask_and_features = _joined(lambda ids: encode_text(state.t5, ids).features, {t: text_ids[t] for t in encoded})
        texts = {task: Text(features, text_ids[task] != objectives.PAD) for task, features in mask_and_features.items()}
    sizes = {task: len(image_ids.get(task, text_ids.get(task))) for task in active}
    o, device = config.objective, state.t5_of_nothing.mask.device
    maskings = objectives.draw_maskings(noise, sizes, state.model.config.num_image_tokens, o, device, whole)
    with torch.no_grad():
        empty = state.empty_text()
    totals = objectives.totals(maskings, text_ids, sizes, o, device)
    return Microbatch(image_ids, text_ids, texts, empty, maskings, totals)


def _joined(function, inputs):
    """Applies a row-wise function to the rows of all tasks at once: task -> rows in, task -> rows out."""
    outputs = function(torch.cat(list(inputs.values())))
    return dict(zip(inputs, outputs.split([len(x) for x in inputs.values()]), strict=True))
