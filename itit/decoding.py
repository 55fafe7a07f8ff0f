"""Generation: parallel decoding of image tokens (MaskGIT, arXiv:2202.04200 sec. 3.2), greedy and beam decoding of text.

Knows no model: takes callables that return logits, and a `noise(name, shape)` of uniform draws. Fixed shapes. The loops
are Python's, over a body that is the same for every turn, a program (see program.py). Callables are NamedTuples of what
they read, called as functions: a backend that compiles the body takes them apart.

Shapes: B batch, N image tokens, C codebook, L text tokens, V vocabulary, R beams (rows of a sample).
"""

import functools
import math
from typing import NamedTuple

import torch

from itit.masking import mask_fraction
from itit.noise import gumbel, indexed
from itit.ops import argmax, at_hand, pick
from itit.program import program, runner
from itit.text_encoders import EOS, PAD


def guide(conditional, unconditional, scale):
    """Classifier-free guidance, (1 + scale) l_c - scale l_u (paper sec. 7)."""
    return conditional + scale * (conditional - unconditional)


def by_step(function, step, num_steps, device):
    """`function(step)`, a number or a list of them, as a tensor. `step`: int, or int64 [] on the device."""
    if isinstance(step, int):
        value = function(step)
        return _kept(tuple(value), device) if isinstance(value, list) else on_device(value, device)
    return torch.tensor([function(i) for i in range(num_steps)], device=device).index_select(0, step.view(1))[0]


def on_device(number, device):
    """A number, or a tensor there, as a tensor. It is written by the device: a copy would make the host wait."""
    return number if isinstance(number, torch.Tensor) else torch.full((), number, device=device)


@functools.cache
def _kept(numbers, device):
    """A list of numbers as a tensor, copied once."""
    return torch.tensor(numbers, device=device)


def ramp(value, schedule, step, num_steps, device):
    """Guidance at a step, float32 []: rises linearly to `value` at the last step, or is constant."""
    return by_step(lambda i: value * (i + 1) / num_steps if schedule == "linear" else value, step, num_steps, device)


class Canvas(NamedTuple):
    """A picture half made: tokens int64 [B, N]; unknown ones at the start, and now, int64 [B, 1]."""

    image_ids: torch.Tensor
    unknown: torch.Tensor
    left: torch.Tensor


class Choice(NamedTuple):
    """How tokens are chosen: `num_steps` in all, and `config`, a DecodeConfig."""

    num_steps: int
    mask_token_id: int
    config: object


def by_confidence(logits, sampled, noise, choice, table):
    """Log-probability of what was drawn plus Gumbel noise, scaled by `choice_temperature`, annealed to 0 over the steps
    unless `choice_anneal` is "constant" (MaskGIT)."""
    temperature, linear = choice.config.choice_temperature, choice.config.choice_anneal == "linear"
    scale = table(lambda i: temperature * (1 - (i + 1) / choice.num_steps if linear else 1.0))
    # The logits can be read once for both; log_softmax would also write those of all codes.
    confidence = pick(logits, sampled) - logits.logsumexp(-1)
    return confidence + scale * gumbel(noise("choice", confidence.shape))


# --decode_order -> the priority of the tokens that a step has drawn, numbers [B, N]: the highest are kept. Called with
#   logits, sampled: float32 [B, N, C] and the codes drawn from them, int64 [B, N].
#   noise: of this step.
#   choice: Choice.
#   table: (function of the step, from 0, that gives a number or a list of them) -> a tensor of what it gives for this
#     step; so numbers of Python's reach a device.
ORDERS = {"confidence": by_confidence}


def parallel_decode(logits_fns, image_ids, noise, config, mask_token_id, watch=None):
    """Fills every masked token, the most confident first.

    Each step samples all masked tokens, then masks again those of the lowest priority (see `ORDERS`).

    Args:
      logits_fns: for each step (int64 [B, N], step, its noise) -> float32 [B, N, C].
      image_ids: int64 [B, N]; `mask_token_id` marks the unknown. Known tokens never change.
      config: DecodeConfig.
      watch: called with what each step leaves, int64 [B, N], `mask_token_id` where unknown.

    Returns:
      int64 [B, N] with no `mask_token_id` left.
    """
    choice = Choice(len(logits_fns), mask_token_id, config)
    canvas = _new_canvas(image_ids, mask_token_id)
    for step, logits_fn in enumerate(logits_fns):
        canvas = decode_step(logits_fn, canvas, noise, step, choice)
        if watch is not None:
            watch(canvas.image_ids)
    return canvas.image_ids


@program
def _new_canvas(image_ids, mask_token_id):
    unknown = (image_ids == mask_token_id).sum(1, keepdim=True)
    return Canvas(image_ids, unknown, unknown + 0)


@program(varying=("step",))
def decode_step(logits_fn, canvas, noise, step, choice):
    """One step of `parallel_decode`, the same for every one of them: Canvas -> Canvas. `step` is an int or a tensor."""
    image_ids, unknown, left = canvas
    num_steps, mask_token_id, config = choice
    noise = indexed(noise, step)
    masked = image_ids == mask_token_id
    logits = logits_fn(image_ids, step, noise)
    sampled = (logits + gumbel(noise("token", logits.shape))).argmax(-1)
    filled = torch.where(masked, sampled, image_ids)

    def table(function):
        return by_step(function, step, num_steps, image_ids.device)

    priority = ORDERS[config.decode_order](logits, sampled, noise, choice, table).float()
    priority = priority.masked_fill(~masked, torch.inf)
    # By a table of Python's numbers: in float32 a product may round up to the next whole number. The last step keeps
    # everything.
    counts = range(image_ids.shape[1] + 1)
    wanted = table(lambda i: [math.floor(count * mask_fraction(i, num_steps)) for count in counts])
    least = table(lambda i: int(i < num_steps - 1))
    left = torch.maximum(torch.minimum(wanted[unknown], left - 1), least) * least
    again = (priority.argsort(1).argsort(1) < left) & masked
    return Canvas(filled.masked_fill(again, mask_token_id), unknown, left)


def suppress(logits, ids):
    """Makes these choices impossible: float [..., V] with -inf at `ids`, of which there may be none."""
    if not len(ids):
        return logits
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill(sum(classes == i for i in ids).bool(), -torch.inf)


class Caption(NamedTuple):
    """A text half made: tokens int64 [B, L], the last one [B], whether it has ended bool [B]."""

    ids: torch.Tensor
    token: torch.Tensor
    ended: torch.Tensor


def greedy_decode(step_fn, cache, batch, length, *, bos_id, suppressed, device):
    """The likeliest next token, again and again; PAD after EOS.

    Args:
      step_fn: (int64 [B], position int64 [1], cache) -> float32 [B, V], logits of the next token; updates the cache.
      cache: what step_fn keeps between tokens.
      suppressed: ids never chosen.

    Returns:
      int64 [B, L]; no EOS in a row that did not end.
    """
    caption, unroll = _new_caption(batch, length, bos_id, device), runner().unroll
    for first in range(0, length, unroll):
        if at_hand(caption.ended) and caption.ended.all():
            break
        count = min(unroll, length - first)
        caption, cache = greedy_steps(step_fn, caption, cache, first, count, tuple(suppressed))
    return caption.ids


@program
def _new_caption(batch, length, bos_id, device):
    return Caption(
        torch.full((batch, length), PAD, dtype=torch.long, device=device),
        torch.full((batch,), bos_id, dtype=torch.long, device=device),
        torch.zeros(batch, dtype=torch.bool, device=device),
    )


@program(varying=("first",))
def greedy_steps(step_fn, caption, cache, first, count, suppressed):
    """`count` tokens of `greedy_decode` from position `first`, an int or a tensor: (Caption, cache)."""
    ids, token, ended = caption
    slots = torch.arange(ids.shape[1], device=ids.device)
    for position in range(count):
        position = (on_device(first, ids.device) + position).view(1)
        token = argmax(suppress(step_fn(token, position, cache), suppressed)).masked_fill(ended, PAD)
        ids = torch.where(slots == position, token[:, None], ids)
        ended = ended | (token == EOS)
    return Caption(ids, token, ended), cache


def length_penalty(length, alpha):
    """((5 + length) / 6) ** alpha (arXiv:1609.08144 eq. 14); `length` counts BOS."""
    return ((5 + length) / 6) ** alpha


class Candidates(NamedTuple):
    """Texts of each sample, best first: int64 [B, R, L], EOS PAD ... at their ends. `scores` [B, R]: log-probability
    over `length_penalty`, -inf where there is none."""

    texts: torch.Tensor
    scores: torch.Tensor


def best(candidates):
    """int64 [B, L]."""
    return candidates.texts[:, 0]


def beam_decode(step_fn, reorder_fn, cache, batch, length, *, beam_size, alpha, bos_id, suppressed, device):
    """Beam search: scores divided by GIT's `length_penalty`, texts finished and samples ended by Hugging Face's rule.

    Each step looks at the 2 `beam_size` best candidates. One that ends is a finished text if it is among the
    `beam_size` best. A sample is done when it has `beam_size` finished texts and no live beam, at its present length,
    can beat the worst of them.

    Args:
      step_fn: (int64 [B R], position int64 [1], cache) -> float32 [B R, V]; rows of one sample lie together.
      reorder_fn: (cache, int64 [B R]) -> cache: row i goes on from row `rows[i]`, of the same sample.
      cache: what step_fn keeps between tokens, of B R rows.

    Returns:
      Candidates.
    """
    beams = _new_beams(batch, beam_size, length, bos_id, device)
    for position in range(length):
        if at_hand(beams.finished.done) and beams.finished.done.all():
            break
        beams, cache = beam_step(step_fn, reorder_fn, beams, cache, position, alpha, tuple(suppressed))
    return _candidates(beams, alpha)


class Finished(NamedTuple):
    """The best finished texts of each sample, best first: texts int64 [B, R, L], scores [B, R], -inf where none.

    `done`, bool [B, 1]: no further text can be among them.
    """

    texts: torch.Tensor
    scores: torch.Tensor
    done: torch.Tensor

    def add(self, texts, scores):
        """With candidates merged in, texts int64 [B, X, L] and scores [B, X], except where the sample is done."""
        scores = torch.cat([self.scores, scores.masked_fill(self.done, -torch.inf)], 1)
        texts, keep = torch.cat([self.texts, texts], 1), self.texts.shape[1]
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return self._replace(texts=_rows_at(texts, order[:, :keep]), scores=scores[:, :keep])

    def close(self, best_live):
        """With samples ended whose worst kept text is at least as good as `best_live` [B, 1]."""
        worst = self.scores[:, -1:]
        return self._replace(done=self.done | (worst >= best_live) & torch.isfinite(worst))


class Beams(NamedTuple):
    """Texts half written, R a sample: scores [B, R], the last token int64 [B R], texts int64 [B, R, L]."""

    scores: torch.Tensor
    token: torch.Tensor
    texts: torch.Tensor
    finished: Finished


@program
def _new_beams(batch, beam_size, length, bos_id, device):
    texts = torch.full((batch, beam_size, length), PAD, dtype=torch.long, device=device)
    none = torch.full((batch, beam_size), -torch.inf, device=device)
    # All beams are alike at first: only one may branch.
    scores = none.masked_fill(torch.arange(beam_size, device=device) == 0, 0.0)
    token = torch.full((batch * beam_size,), bos_id, dtype=torch.long, device=device)
    finished = Finished(texts + 0, none + 0, torch.zeros(batch, 1, dtype=torch.bool, device=device))
    return Beams(scores, token, texts, finished)


@program(varying=("position",))
def beam_step(step_fn, reorder_fn, beams, cache, position, alpha, suppressed):
    """One token of `beam_decode`, at `position`, an int or a tensor: (Beams, cache)."""
    batch, beam_size, length = beams.texts.shape
    device = beams.texts.device
    here = torch.arange(length, device=device) == position
    slot = on_device(position, device).view(1)
    log_probs = suppress(step_fn(beams.token, slot, cache), suppressed).log_softmax(-1)
    vocab = log_probs.shape[-1]
    scores = (beams.scores[..., None] + log_probs.view(batch, beam_size, vocab)).flatten(1)
    scores, picks = scores.topk(2 * beam_size, dim=1)  # [B, 2 R], descending
    beam, token = picks // vocab, picks % vocab
    ends = token == EOS
    best = ends & (torch.arange(2 * beam_size, device=device) < beam_size)
    penalty = by_step(lambda i: length_penalty(i + 1, alpha), position, length, device)
    finished = beams.finished.add(
        _rows_at(beams.texts, beam).masked_fill(here, EOS), torch.where(best, scores / penalty, -torch.inf)
    ).close(scores[:, :1] / penalty)
    # The best candidates that go on: a stable sort puts those that end behind.
    order = ends.to(torch.int64).argsort(dim=1, stable=True)[:, :beam_size]
    scores, token, beam = scores.gather(1, order), token.gather(1, order), beam.gather(1, order)
    texts = torch.where(here, token[..., None], _rows_at(beams.texts, beam))
    rows = torch.arange(batch, device=device)[:, None] * beam_size + beam
    return Beams(scores, token.flatten(), texts, finished), reorder_fn(cache, rows.flatten())


@program
def _candidates(beams, alpha):
    length = beams.texts.shape[2]
    found = beams.finished.add(beams.texts, beams.scores / length_penalty(length + 1, alpha))
    return Candidates(found.texts, found.scores)


def _rows_at(texts, index):
    """int64 [B, R, L] at int64 [B, X] -> [B, X, L]."""
    return texts.gather(1, index[..., None].expand(-1, -1, texts.shape[2]))
