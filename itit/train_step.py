"""One optimizer step: a batch of the three streams in, every loss of ITIT out. Plain torch; what a backend compiles.

A step is a few calls of `run` (see eager.py): `prepare`, the synthesis inside the two cycles, and `update`.

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import contextlib
from typing import NamedTuple

import torch

from itit import inference, objectives
from itit.eager import Eager
from itit.models import Text, cast_once, encode_text
from itit.optim import Adafactor, Ema

LOSSES = ("t2i", "i2t", "i2t_i2i", "t2i2t", "i2t2i", "t2t", "i2i")
NEEDS_TEXT_FEATURES = ("t2i", "t2i2t")


class State(NamedTuple):
    """All that a step reads and changes. `t5` and `vqgan` are frozen; `vqgan` may be None where codes are ready. Where
    nothing is trained, `optimizer` and `ema` are None."""

    model: torch.nn.Module
    t5: torch.nn.Module
    vqgan: torch.nn.Module | None
    t5_of_nothing: Text
    optimizer: Adafactor | None
    ema: Ema | None

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
        average = self.ema.average if self.ema else {}
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
    sizes = {name: getattr(o, f"{name}_batch") for name in ("t2i", "i2t", "t2i2t", "i2t2i", "t2t", "i2i")}
    for cycle, warmup in (("t2i2t", o.t2i2t_warmup_steps), ("i2t2i", o.i2t2i_warmup_steps)):
        if step < warmup:
            sizes[cycle] = 0
    return {name: size for name, size in sizes.items() if size}


def train_step(state, batch, noises, rate, config, active, run=None):
    """Runs one step.

    Args:
      batch: "task/field" -> tensor on the device: "image_ids" int64 [B, N] or "images" uint8 [B, S, S, 3], and
        "text_ids" int64 [B, L].
      noises: a `noise.Noise` for each microbatch.
      rate: learning rate.
      active: task -> samples, of this step (see `tasks`).
      run: how its parts are run (default: as they stand).

    Returns:
      "loss", "grad_norm", "loss/NAME", and "skipped", 1 where the update was not made (see `Adafactor.step`), else 0;
      float32, 0-d, on the device: nothing here waits for them.
    """
    run = run or Eager()
    parts = [run(prepare, state, batch, noise, noises[0], config, active, (i, len(noises)))
             for i, noise in enumerate(noises)]  # fmt: skip
    with inference.weights_cast(state.model, run):
        parts = [synthesize(state, part, noise, config, run) for part, noise in zip(parts, noises, strict=True)]
        return run(update, state, parts, noises, run.number(rate), config, updates=list(state.tensors().values()))


def synthesize(state, part, noise, config, run):
    """The Part with what the cycles make by the inference pipelines: pictures from texts, texts from pictures.

    Nothing here has a gradient; the weights are those before the step.
    """
    if "t2i2t" not in part.text_ids and "i2t2i" not in part.image_ids:
        return part
    images, texts, model, empty = {}, {}, state.model, part.empty
    with inference.inference_mode(model, run):
        if "t2i2t" in part.text_ids:
            images["t2i2t"] = objectives.synthesize_image(
                model, part.texts["t2i2t"], empty, noise, config.objective, config.decode, run
            )
        if "i2t2i" in part.image_ids:
            texts["i2t2i"] = objectives.synthesize_text(model, part.image_ids["i2t2i"], empty, run)
    return part._replace(image_ids=part.image_ids | images, text_ids=part.text_ids | texts)


def update(state, parts, noises, rate, config):
    """Losses, gradients and the optimizer's step, in place. Returns what `train_step` returns."""
    totals = {name: sum(part.totals[name] for part in parts) for name in parts[0].totals}
    metrics = {}
    state.model.train()
    for index, (part, noise) in enumerate(zip(parts, noises, strict=True)):
        noise.start_dropout(state.model, index == 0)
        with cast_once(state.model):
            losses = compute_losses(state, part, totals, noise, config)
        loss = sum(getattr(config.objective, f"{name}_weight") * value for name, value in losses.items())
        loss.backward()
        for name, value in [("loss", loss), *((f"loss/{name}", value) for name, value in losses.items())]:
            metrics[name] = metrics.get(name, 0.0) + value.detach()
    metrics["grad_norm"], made = state.optimizer.step(rate, torch.isfinite(metrics["loss"]))
    if state.ema is not None:
        state.ema.update(state.model.named_parameters(), made)
    metrics["skipped"] = 1 - made.float()
    return metrics


class Part(NamedTuple):
    """A microbatch ready to be learned from: per task the image ids, text ids and Text; per pass the Masking.

    `empty` is the empty Text, of one row, without gradient.
    """

    image_ids: dict
    text_ids: dict
    texts: dict
    empty: Text
    maskings: dict
    totals: dict


def compute_losses(state, part, totals, noise, config):
    """Every loss of a microbatch: name -> float32, 0-d, its share of the loss of the whole batch."""
    o, model, empty = config.objective, state.model, state.empty_text()
    images, ids, texts, maskings = part.image_ids, part.text_ids, part.texts, part.maskings
    losses = {}
    if "t2i" in images:
        text = objectives.drop_text(texts["t2i"], empty, noise, o.t2i_text_drop_prob)
        losses["t2i"] = objectives.t2i(model, images["t2i"], text, maskings["t2i"], totals["t2i"], o)
    if "i2t" in images:
        losses["i2t"], losses["i2t_i2i"] = objectives.i2t(
            model, images["i2t"], ids["i2t"], empty, maskings["i2t"], totals["i2t"], totals["i2t_i2i"], o
        )
    if "t2i2t/first" in maskings:
        passes = maskings["t2i2t/first"], maskings["t2i2t/second"]
        losses["t2i2t"] = objectives.t2i2t(
            model, images["t2i2t"], ids["t2i2t"], texts["t2i2t"], empty, passes, noise, totals["t2i2t"], o
        )
    if "i2t2i/first" in maskings:
        passes = maskings["i2t2i/first"], maskings["i2t2i/second"]
        losses["i2t2i"] = objectives.i2t2i(
            model, state.t5, ids["i2t2i"], images["i2t2i"], empty, passes, noise, totals["i2t2i"], o
        )
    if "t2t" in ids:
        losses["t2t"] = objectives.t2t(model, ids["t2t"], totals["t2t"], o)
    if "i2i" in images:
        rows = len(images["i2i"])
        losses["i2i"] = objectives.t2i(model, images["i2i"], empty.expand(rows), maskings["i2i"], totals["i2i"], o)
    return losses


def prepare(state, batch, noise, whole, config, active, part):
    """Tokenizes pictures, encodes texts and draws the masks: what needs no gradient, once for all tasks.

    Args:
      noise, whole: the microbatch's own noise, and that of the batch.
      part: (index, number) of the microbatches that every task is cut into. Tasks that are not active are left out.

    Returns:
      Part.
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
    encoded = [task for task in NEEDS_TEXT_FEATURES if task in text_ids]
    texts = {}
    if encoded:
        mask_and_features = _joined(lambda ids: encode_text(state.t5, ids).features, {t: text_ids[t] for t in encoded})
        texts = {task: Text(features, text_ids[task] != objectives.PAD) for task, features in mask_and_features.items()}
    sizes = {task: len(image_ids.get(task, text_ids.get(task))) for task in active}
    maskings = objectives.draw_maskings(noise, sizes, state.model.config.num_image_tokens, config.objective,
                                        state.t5_of_nothing.mask.device, whole)  # fmt: skip
    with torch.no_grad():
        empty = state.empty_text()
    return Part(image_ids, text_ids, texts, empty, maskings, objectives.totals(maskings, text_ids, config.objective))


def _joined(function, inputs):
    """Applies a row-wise function to the rows of all tasks at once: task -> rows in, task -> rows out."""
    outputs = function(torch.cat(list(inputs.values())))
    return dict(zip(inputs, outputs.split([len(x) for x in inputs.values()]), strict=True))
