"""Looks at a model: prompt -> picture, picture -> caption, and both cycles over several turns (paper figure 6).

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import textwrap
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from itit import decoding, inference
from itit.models import encode_text


class Translator:
    """Text ids to picture ids and back, with the weights and the frozen parts of a `train_step.State`.

    `backend`: where, and whose draws (see backends/connect.py). `step`: of the run, whose draws it makes its own from.
    """

    def __init__(self, state, config, backend, step, batch_size=64):
        self.state, self.config, self.backend, self.step, self.batch_size = state, config, backend, step, batch_size
        self.run = backend.sampler

    def pictures(self, text_ids, name="prompt", rows=None, watch=None):
        """Guided parallel decoding: int64 [B, L] -> int64 [B, N].

        Args:
          name: tells the noise from that of other calls.
          rows: list of B numbers; the noise of a picture depends on its own and on `name` alone. By default 0, 1, ...
          watch: sees what each step leaves of each batch (see `decoding.parallel_decode`).
        """
        rows = list(range(len(text_ids)) if rows is None else rows)

        def generate(part, start):
            # Names become keys here, on the host: as prefixes they would be constants, and each a program of its own.
            numbers = rows[start : start + self.batch_size]
            noise = self.backend.noise(self.config.train.seed, self.step, f"samples/{name}", numbers)
            if watch is not None:
                return _pictures(self.state, part, noise, self.config, self.run, watch)
            return self.backend.whole(_pictures, self.state, part, noise, self.config, self.run)

        return self.run(torch.cat, self._in_batches(text_ids, generate))

    def captions(self, image_ids, greedy=False):
        """Beam search, or greedy: int64 [B, N] -> int64 [B, L]."""
        if not greedy:
            return self.run(decoding.best, self.candidates(image_ids))
        return self.run(torch.cat, self._in_batches(image_ids, self._whole(_greedy_captions)))

    def candidates(self, image_ids):
        """Beam search: int64 [B, N] -> `decoding.Candidates`."""
        parts = self._in_batches(image_ids, self._whole(_candidates))
        return decoding.Candidates(*(self.run(torch.cat, list(part)) for part in zip(*parts, strict=True)))

    def turns(self, ids, kind, num_turns, rows=None):
        """A cycle over several turns, from ids of `kind` "text" or "image". Yields the ids of each stage, first in."""
        yield ids
        for turn in range(num_turns):
            from_text = (kind == "text") == (turn % 2 == 0)
            ids = self.pictures(ids, f"turn{turn}", rows) if from_text else self.captions(ids)
            yield ids

    def pixels(self, image_ids):
        """int64 [B, N] -> uint8 numpy [B, S, S, 3]. Tokens that are masked yet are grey."""
        return self.run(torch.cat, self._in_batches(image_ids, self._pixels)).cpu().numpy()

    def _in_batches(self, ids, function):
        """Results of function(rows of a batch, number of the first)."""
        parts = enumerate(self.run(torch.split, ids, self.batch_size))
        return self.backend.spread(lambda item: function(item[1], item[0] * self.batch_size), parts)

    def _whole(self, function):
        return lambda ids, _: self.backend.whole(function, self.state, ids, self.config, self.run)

    def _pixels(self, image_ids, _):
        return self.run(_to_pixels, self.state.vqgan, image_ids)


def _pictures(state, text_ids, noise, config, run, watch=None):
    text, empty = run(encode_text, state.t5, text_ids), run(_empty_text, state)
    dropped = inference.drops(state.model, config.objective, config.decode)
    return inference.generate(state.model, text, empty, noise, config.decode, dropped=dropped, run=run, watch=watch)


def _candidates(state, image_ids, config, run):
    return inference.caption_beam(state.model, image_ids, run(_empty_text, state), config.decode, run)


def _greedy_captions(state, image_ids, config, run):
    return inference.caption_greedy(state.model, image_ids, run(_empty_text, state), run)


@torch.no_grad()
def _empty_text(state):
    return state.empty_text()


@torch.no_grad()
def _to_pixels(vqgan, image_ids):
    masked = image_ids >= vqgan.config.codebook_size
    pixels = vqgan.to_pixels(image_ids.masked_fill(masked, 0))
    side, factor = vqgan.config.grid, vqgan.config.factor
    masked = masked.view(-1, side, 1, side, 1).expand(-1, -1, factor, -1, factor).reshape(*pixels.shape[:3], 1)
    return pixels.masked_fill(masked, GREY)


class Panel(NamedTuple):
    """A picture, uint8 [S, S, 3] or None, with a text beneath."""

    pixels: np.ndarray | None
    text: str


CELL, TEXT_HEIGHT, MARGIN, GREY = 144, 62, 8, 160


def resized(pixels, side):
    """uint8 [S, S, 3] as a PIL picture of another side: small ones show their pixels, large ones are averaged."""
    picture = Image.fromarray(pixels)
    enlarged = side >= picture.width
    return picture.resize((side, side), Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX)


def sheet(title, rows):
    """Draws rows of panels: uint8 [height, width, 3]."""
    columns = max(len(row) for row in rows)
    width, row_height = MARGIN + columns * (CELL + MARGIN), CELL + TEXT_HEIGHT
    page = Image.new("RGB", (width, 28 + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, 8), title, fill="black")
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            x, y = MARGIN + j * (CELL + MARGIN), 28 + i * row_height
            if panel.pixels is not None:
                page.paste(resized(panel.pixels, CELL), (x, y))
            lines = textwrap.wrap(panel.text, 24)[:5]
            draw.text((x, y + CELL + 2), "\n".join(lines), fill="black", spacing=1)
    return np.asarray(page)


def collect(translator, batch, detokenizer, num_turns=4):
    """Everything a person looks at during training.

    Args:
      batch: pairs, "image_ids" int64 [B, N] and "text_ids" int64 [B, L].
      detokenizer: text_encoders.Tokenizer.

    Returns:
      Name -> sheet, uint8 [height, width, 3].
    """

    def words(text_ids):
        return detokenizer.decode(text_ids.cpu().numpy())

    def panels(image_ids, texts):
        return [Panel(p, t) for p, t in zip(translator.pixels(image_ids), texts, strict=True)]

    texts, images = batch["text_ids"], batch["image_ids"]
    made = panels(translator.pictures(texts), words(texts))
    captioned = panels(images, words(translator.captions(images)))
    sheets = {
        "prompt_to_picture": sheet("prompts and their pictures", [made[i : i + 4] for i in range(0, len(made), 4)]),
        "picture_to_caption": sheet(
            "pictures and their captions", [captioned[i : i + 4] for i in range(0, len(captioned), 4)]
        ),
    }
    for kind, ids in (("text", texts), ("image", images)):
        rows = cycle_rows(translator, words, ids, kind, num_turns)
        sheets[f"cycle_from_{kind}"] = sheet(f"cycles that begin with the {kind} on the left", rows)
    return sheets


def cycle_rows(translator, words, ids, kind, num_turns):
    """One row of panels a sample: each stage's picture with the text made from it beneath."""
    stages = list(translator.turns(ids, kind, num_turns))
    if kind == "text":
        stages = [None, *stages]
    if len(stages) % 2:
        stages = [*stages, None]
    columns = []
    for images, texts in zip(stages[::2], stages[1::2], strict=True):
        pixels = [None] * len(ids) if images is None else translator.pixels(images)
        captions = [""] * len(ids) if texts is None else words(texts)
        columns.append([Panel(p, t) for p, t in zip(pixels, captions, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]
