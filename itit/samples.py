"""Looks at a model: prompt -> picture, picture -> caption, and both cycles over several turns (paper figure 6).

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import torch

from itit import decoding, inference
from itit.models import encode_text
from itit.program import program, running
from itit.sheets import Panel, Section, draw, in_rows

COLUMNS = 4  # of pictures on a sheet
GREY = 160  # of what is masked yet


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
                with running(self.run):
                    return _pictures(self.state, part, noise, self.config, watch)
            return self._whole(_pictures, part, noise)

        return self.run(torch.cat, self._in_batches(text_ids, generate))

    def captions(self, image_ids, greedy=False):
        """Beam search, or greedy: int64 [B, N] -> int64 [B, L]."""
        if not greedy:
            return self.run(decoding.best, self.candidates(image_ids))
        return self.run(torch.cat, self._in_batches(image_ids, lambda part, _: self._whole(_greedy_captions, part)))

    def candidates(self, image_ids):
        """Beam search: int64 [B, N] -> `decoding.Candidates`."""
        parts = self._in_batches(image_ids, lambda part, _: self._whole(_candidates, part))
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

    def _whole(self, function, *args):
        with running(self.run):
            return self.backend.whole(function, self.state, *args, self.config)

    def _pixels(self, image_ids, _):
        return self.run(_to_pixels, self.state.vqgan, image_ids)


def _pictures(state, text_ids, noise, config, watch=None):
    text, empty = _features(state.t5, text_ids), _empty_text(state)
    dropped = inference.drops(state.model, config.objective, config.decode)
    return inference.generate(state.model, text, empty, noise, config.decode, dropped=dropped, watch=watch)


def _candidates(state, image_ids, config):
    return inference.caption_beam(state.model, image_ids, _empty_text(state), config.decode)


def _greedy_captions(state, image_ids, config):
    return inference.caption_greedy(state.model, image_ids, _empty_text(state))


_features = program(encode_text)


@program
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

    def rows(image_ids, texts):
        return in_rows(list(map(Panel, translator.pixels(image_ids), texts)), COLUMNS)

    texts, images = batch["text_ids"], batch["image_ids"]
    sections = {
        "prompt_to_picture": Section("prompts and their pictures", rows(translator.pictures(texts), words(texts))),
        "picture_to_caption": Section("pictures and their captions", rows(images, words(translator.captions(images)))),
    }
    for kind, ids in (("text", texts), ("image", images)):
        sections[f"cycle_from_{kind}"] = cycles(translator, words, ids, kind, num_turns)
    return {name: draw([section]) for name, section in sections.items()}


def cycles(translator, words, ids, kind, num_turns):
    """A section with a row for each of the samples, which are ids of `kind`: what is given and what each turn makes."""
    stages = []
    for turn, made in enumerate(translator.turns(ids, kind, num_turns)):
        if (kind == "text") == (turn % 2 == 0):
            stages.append([Panel(None, text) for text in words(made)])
        else:
            stages.append(list(map(Panel, translator.pixels(made))))
    title = f"cycles: the framed {kind} is given, all else is made, each from the one before"
    return Section(title, list(zip(*stages, strict=True)), joined=True)
