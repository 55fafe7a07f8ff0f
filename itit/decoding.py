"""Generation: parallel decoding of image tokens (MaskGIT, arXiv:2202.04200 sec. 3.2), greedy and beam decoding of text.

Knows no model: takes callables that return logits, and a `noise(name, shape)` of uniform draws. Fixed shapes; the only
loop exits early where `early_exit` allows a look at the data.

Shapes: B batch, N image tokens, C codebook, L text tokens, V vocabulary, R beams (rows of a sample).
"""

import math

import torch

from itit.masking import mask_fraction
from itit.noise import gumbel

PAD, EOS = 0, 1


def guide(conditional, unconditional, scale):
    """Classifier-free guidance, (1 + scale) l_c - scale l_u (paper sec. 7)."""
    return conditional + scale * (conditional - unconditional)


def ramp(value, schedule, step, num_steps):
    """Guidance at a step: rises linearly to `value` at the last step, or is constant."""
    return value * (step + 1) / num_steps if schedule == "linear" else value


def parallel_decode(logits_fn, image_ids, noise, *, num_steps, mask_token_id, choice_temperature, anneal="linear"):
    """Fills every masked token, the most confident first.

    Each step samples all masked tokens, then masks again those whose log-probability plus Gumbel noise is lowest. The
    noise is scaled by `choice_temperature`, annealed to 0 over the steps unless `anneal` is "constant".

    Args:
      logits_fn: (int64 [B, N], step) -> float32 [B, N, C].
      image_ids: int64 [B, N]; `mask_token_id` marks the unknown. Known tokens never change.

    Returns:
      int64 [B, N] with no `mask_token_id` left.
    """
    unknown = (image_ids == mask_token_id).sum(1, keepdim=True)  # [B, 1] at the start
    counts = range(image_ids.shape[1] + 1)
    left = unknown
    for step in range(num_steps):
        masked = image_ids == mask_token_id
        log_probs = logits_fn(image_ids, step).log_softmax(-1)
        sampled = (log_probs + gumbel(noise(f"token{step}", log_probs.shape))).argmax(-1)
        filled = torch.where(masked, sampled, image_ids)
        if step == num_steps - 1:
            return filled
        confidence = log_probs.gather(2, sampled[..., None])[..., 0]
        temperature = choice_temperature * (1 - (step + 1) / num_steps if anneal == "linear" else 1.0)
        confidence = confidence + temperature * gumbel(noise(f"choice{step}", confidence.shape))
        confidence = confidence.masked_fill(~masked, torch.inf)
        # By a table of Python's numbers: in float32 a product may round up to the next whole number.
        wanted = [math.floor(count * mask_fraction(step, num_steps)) for count in counts]
        left = torch.minimum(torch.tensor(wanted, device=left.device)[unknown], left - 1).clamp(min=1)
        again = (confidence.argsort(1).argsort(1) < left) & masked
        image_ids = filled.masked_fill(again, mask_token_id)


def suppress(logits, ids):
    """Makes these choices impossible: float [..., V] with -inf at `ids`."""
    return logits.index_fill(-1, torch.tensor(ids, device=logits.device), -torch.inf)


def greedy_decode(step_fn, batch, length, *, bos_id, suppressed, device, early_exit=False):
    """The likeliest next token, again and again; PAD after EOS.

    Args:
      step_fn: (int64 [B], position int64 [1]) -> float32 [B, V], logits of the next token.
      suppressed: ids never chosen.
      early_exit: stop computing when every row has ended (reads from the device).

    Returns:
      int64 [B, L]; no EOS in a row that did not end.
    """
    ids = torch.full((batch, length), PAD, dtype=torch.long, device=device)
    token = torch.full((batch,), bos_id, dtype=torch.long, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    for position in range(length):
        if early_exit and bool(ended.all()):
            break
        where = torch.tensor([position], device=device)
        token = suppress(step_fn(token, where), suppressed).argmax(-1).masked_fill(ended, PAD)
        ids[:, position] = token
        ended = ended | (token == EOS)
    return ids


def length_penalty(length, alpha):
    """((5 + length) / 6) ** alpha (arXiv:1609.08144 eq. 14); `length` counts BOS."""
    return ((5 + length) / 6) ** alpha


def beam_decode(step_fn, reorder_fn, batch, length, *, beam_size, alpha, bos_id, suppressed, device):
    """Beam search: scores divided by GIT's `length_penalty`, texts finished and samples ended by Hugging Face's rule.

    Each step looks at the 2 `beam_size` best candidates. One that ends is a finished text if it is among the
    `beam_size` best. A sample is done when it has `beam_size` finished texts and no live beam, at its present length,
    can beat the worst of them.

    Args:
      step_fn: (int64 [B R], position int64 [1]) -> float32 [B R, V]; rows of one sample lie together.
      reorder_fn: int64 [B R]: row i goes on from row `rows[i]`.

    Returns:
      int64 [B, L], the best text of each sample, EOS PAD ... at its end.
    """
    rows = torch.arange(batch, device=device)[:, None] * beam_size
    token = torch.full((batch * beam_size,), bos_id, dtype=torch.long, device=device)
    live = torch.full((batch, beam_size), -torch.inf, device=device)
    live[:, 0] = 0.0  # all beams are alike at first: only one may branch
    texts = torch.full((batch, beam_size, length), PAD, dtype=torch.long, device=device)
    finished = Finished(batch, beam_size, length, device)
    for position in range(length):
        log_probs = suppress(step_fn(token, torch.tensor([position], device=device)), suppressed).log_softmax(-1)
        vocab = log_probs.shape[-1]
        scores = (live[..., None] + log_probs.view(batch, beam_size, vocab)).flatten(1)
        scores, picks = scores.topk(2 * beam_size, dim=1)  # [B, 2 R], descending
        beam, token = picks // vocab, picks % vocab
        ends = token == EOS
        best = ends & (torch.arange(2 * beam_size, device=device) < beam_size)
        ended = texts.gather(1, beam[..., None].expand(-1, -1, length)).clone()
        ended[:, :, position] = EOS
        penalty = length_penalty(position + 1, alpha)
        finished.add(ended, torch.where(best, scores / penalty, -torch.inf))
        finished.close(scores[:, :1] / penalty)
        # The best candidates that go on: a stable sort puts those that end behind.
        order = ends.to(torch.int64).argsort(dim=1, stable=True)[:, :beam_size]
        live, token, beam = scores.gather(1, order), token.gather(1, order), beam.gather(1, order)
        texts = texts.gather(1, beam[..., None].expand(-1, -1, length)).clone()
        texts[:, :, position] = token
        token = token.flatten()
        reorder_fn((rows + beam).flatten())
    finished.add(texts, live / length_penalty(length + 1, alpha))
    return finished.texts[:, 0]


class Finished:
    """The best finished texts of each sample, best first: texts int64 [B, R, L], scores [B, R], -inf where none."""

    def __init__(self, batch, beam_size, length, device):
        self.texts = torch.full((batch, beam_size, length), PAD, dtype=torch.long, device=device)
        self.scores = torch.full((batch, beam_size), -torch.inf, device=device)
        self.done = torch.zeros(batch, 1, dtype=torch.bool, device=device)

    def add(self, texts, scores):
        """Merges candidates, texts int64 [B, X, L] and scores [B, X], except where the sample is done."""
        scores = torch.cat([self.scores, scores.masked_fill(self.done, -torch.inf)], 1)
        texts = torch.cat([self.texts, texts], 1)
        self.scores, order = scores.sort(dim=1, descending=True, stable=True)
        keep = self.texts.shape[1]
        self.scores, order = self.scores[:, :keep], order[:, :keep]
        self.texts = texts.gather(1, order[..., None].expand(-1, -1, texts.shape[2]))

    def close(self, best_live):
        """Ends samples whose worst kept text is at least as good as `best_live` [B, 1]."""
        self.done = self.done | (self.scores[:, -1:] >= best_live) & torch.isfinite(self.scores[:, -1:])
