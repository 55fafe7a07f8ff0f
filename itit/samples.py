"""Looks at a model: prompt -> picture, picture -> caption, and both cycles over several turns (paper figure 6).

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import textwrap
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from itit import inference
from itit.models import encode_text


class Translator:
    """Text ids to picture ids and back, with the weights and the frozen parts of a `train_step.State`.

    `backend`: where, and whose draws (see backend.py). `step`: of the run, whose draws it makes its own from.
    """

    def __init__(self, state, config, backend, step, batch_size=64):
        self.state, self.config, self.backend, self.step, self.batch_size = state, config, backend, step, batch_size
        self.run = backend.sampler

    def pictures(self, text_ids, name="prompt"):
        """Guided parallel decoding: int64 [B, L] -> int64 [B, N]. `name` tells its noise from that of other calls."""
        return self._in_batches(text_ids, name, self._generate)

    def captions(self, image_ids, greedy=False):
        """Beam search, or greedy: int64 [B, N] -> int64 [B, L]."""
        return self._in_batches(image_ids, "", self._greedy if greedy else self._beam)

    def turns(self, ids, kind, num_turns):
        """A cycle over several turns, from ids of `kind` "text" or "image". Returns the ids of each stage, first in."""
        stages = [ids]
        for turn in range(num_turns):
            from_text = (kind == "text") == (turn % 2 == 0)
            stages.append(self.pictures(stages[-1], f"turn{turn}") if from_text else self.captions(stages[-1]))
        return stages

    def pixels(self, image_ids):
        """int64 [B, N] -> uint8 numpy [B, S, S, 3]."""
        return self._in_batches(image_ids, "", self._pixels).cpu().numpy()

    def _in_batches(self, ids, name, function):
        parts = self.run(torch.split, ids, self.batch_size)
        return self.run(torch.cat, [function(part, f"{name}/{i}") for i, part in enumerate(parts)])

    def _generate(self, text_ids, name):
        text, empty = self.run(encode_text, self.state.t5, text_ids), self.run(_empty_text, self.state)
        # Names become keys here, on the host: as prefixes they would be constants, and each a program of its own.
        noise = self.backend.noise(self.config.train.seed, self.step, f"samples/{name}")
        dropped = inference.drops(self.state.model, self.config.objective, self.config.decode)
        return inference.generate(
            self.state.model, text, empty, noise, self.config.decode, dropped=dropped, run=self.run
        )

    def _beam(self, image_ids, _):
        empty = self.run(_empty_text, self.state)
        return inference.caption_beam(self.state.model, image_ids, empty, self.config.decode, self.run)

    def _greedy(self, image_ids, _):
        return inference.caption_greedy(self.state.model, image_ids, self.run(_empty_text, self.state), self.run)

    def _pixels(self, image_ids, _):
        return self.run(_to_pixels, self.state.vqgan, image_ids)


@torch.no_grad()
def _empty_text(state):
    return state.empty_text()


@torch.no_grad()
def _to_pixels(vqgan, image_ids):
    return vqgan.to_pixels(image_ids)


class Panel(NamedTuple):
    """A picture, uint8 [S, S, 3] or None, with a text beneath."""

    pixels: np.ndarray | None
    text: str


CELL, TEXT_HEIGHT, MARGIN = 144, 62, 8


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
                page.paste(Image.fromarray(panel.pixels).resize((CELL, CELL), Image.Resampling.NEAREST), (x, y))
            lines = textwrap.wrap(panel.text, 24)[:5]
            draw.text((x, y + CELL + 2), "\n".join(lines), fill="black", spacing=1)
    return np.asarray(page)


def collect(translator, batch, detokenizer, num_turns=4):
    """Everything a person looks at during training.

    Args:
      batch: pairs, "image_ids" int64 [B, N] and "text_ids" int64 [B, L].
      detokenizer: data.text.Detokenizer.

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
    stages = translator.turns(ids, kind, num_turns)
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
