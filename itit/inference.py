"""The two inference pipelines (paper sec. 7): text to image tokens, and image tokens to text.

Binds a model to `decoding`. The cycles synthesize with the same functions that generate for a person.

Shapes: B batch, N image tokens, L text tokens, C codebook.
"""

import contextlib
from typing import NamedTuple

import torch

from itit import decoding
from itit.masking import Masking, decode_schedule, drop_masked, keep_all, num_dropped
from itit.models import Text, weights_cast
from itit.program import program


@contextlib.contextmanager
def inference_mode(model):
    """No gradient and no dropout inside, and weights are cast as by `weights_cast`. All is restored after."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), weights_cast(model):
            yield
    finally:
        model.train(training)


def drops(model, objective, decode):
    """How many masked tokens `generate` drops: as many as training (ObjectiveConfig), or none (DecodeConfig)."""
    return num_dropped(model.config.num_image_tokens, objective.mask_ratio_min) if decode.synth_drop_masked else 0


class ImageLogits(NamedTuple):
    """What `parallel_decode` asks for: (image_ids int64 [B, N], step, its noise) -> guided logits float32 [B, N, C].

    `text`: with guidance the texts and the empty one in turn, 2 B rows. `dropped`: masked tokens that the encoder does
    not see, drawn anew at every step.
    """

    model: torch.nn.Module
    text: Text
    config: object
    num_steps: int
    guided: bool
    dropped: int

    def __call__(self, ids, step, noise):
        model, config, batch = self.model, self.config, ids.shape[0]
        mask = ids == model.mask_token_id
        masking = drop_masked(mask, noise("drop", mask.shape), self.dropped) if self.dropped else keep_all(mask)
        # Masked slots are embedded as [MASK] whatever they hold; 0 is a valid row for the lookup.
        ids = ids.masked_fill(mask, 0)
        if self.guided:  # both rows of a sample see the same tokens
            ids, *masking = (x[:, None].expand(-1, 2, -1).flatten(0, 1) for x in (ids, *masking))
            masking = Masking(*masking)
        encoded = model.encode(model.embed(ids, masking), masking, self.text)
        features = model.image_features(model.decode_image(encoded, masking))
        if self.guided:  # what guides logits guides what they are linear in, and takes half the product
            features = features.view(batch, 2, *features.shape[1:])
            scale = decoding.ramp(config.guidance_scale, config.guidance_schedule, step, self.num_steps, ids.device)
            features = decoding.guide(features[:, 0], features[:, 1], scale)
        return model.logits_of(features)


def generate(model, text, empty, noise, config, *, dropped=0, num_steps=None, guided=True, image_ids=None, watch=None):
    """Text to image tokens by guided parallel decoding.

    Args:
      text, empty: Text of B rows, Text of one row.
      config: DecodeConfig.
      dropped: masked tokens that the encoder does not see, where that many are masked (see `drops`).
      num_steps: default config.num_decode_steps.
      guided: with guidance, which runs every row twice.
      image_ids: int64 [B, N] to start from, masked tokens marked; default all masked.
      watch: sees what each step leaves (see `decoding.parallel_decode`).

    Returns:
      int64 [B, N].
    """
    num_steps = num_steps or config.num_decode_steps
    num_masked = decode_schedule(model.config.num_image_tokens, num_steps)
    if image_ids is not None:
        dropped = 0  # nobody knows how many are masked
    with inference_mode(model):
        text, image_ids = _start_picture(model, text, empty, guided, image_ids)
        logits_fns = [
            ImageLogits(model, text, config, num_steps, guided, dropped if dropped <= masked else 0)
            for masked in num_masked
        ]
        return decoding.parallel_decode(logits_fns, image_ids, noise, config, model.mask_token_id, watch)


@program
def _start_picture(model, text, empty, guided, image_ids):
    """The texts that condition each row, and a picture of masked tokens unless one is given."""
    rows = text.mask.shape[0]
    if guided:  # rows of one sample lie side by side
        text = Text(*(torch.stack([a, b.expand_as(a)], 1).flatten(0, 1) for a, b in zip(text, empty, strict=True)))
    if image_ids is None:
        shape = rows, model.config.num_image_tokens
        image_ids = torch.full(shape, model.mask_token_id, dtype=torch.long, device=text.mask.device)
    return text, image_ids


@program
def _start_caption(model, image_ids, empty):
    masking = keep_all(torch.zeros_like(image_ids, dtype=torch.bool))
    encoded = model.encode(model.embed(image_ids, masking), masking, empty.expand(image_ids.shape[0]))
    return model.text_decoder.start(*model.memory(encoded, masking))


def suppressed_ids(model):
    """Ids that no text contains: PAD (it follows EOS by rule, not by choice) and BOS."""
    return [decoding.PAD, model.config.bos_id]


class TextLogits(NamedTuple):
    """What `greedy_decode` asks for."""

    model: torch.nn.Module

    def __call__(self, token, position, cache):
        return self.model.text_decoder.step(token, position, cache)


def caption_greedy(model, image_ids, empty):
    """Image tokens int64 [B, N] to text int64 [B, L]; PAD after EOS. The synthesis of the image-text-image cycle."""
    with inference_mode(model):
        cache = _start_caption(model, image_ids, empty)
        return decoding.greedy_decode(
            TextLogits(model), cache, image_ids.shape[0], model.config.num_text_tokens, bos_id=model.config.bos_id,
            suppressed=suppressed_ids(model), device=image_ids.device,
        )  # fmt: skip


@program
def _start_beams(model, image_ids, empty, beam_size):
    return _start_caption(model, image_ids, empty).repeat(beam_size)


def _reorder(cache, rows):
    return cache.reorder(rows)


def caption_beam(model, image_ids, empty, config):
    """Image tokens int64 [B, N] to `decoding.Candidates`, with the beams and the length penalty of a DecodeConfig."""
    with inference_mode(model):
        cache = _start_beams(model, image_ids, empty, config.beam_size)
        return decoding.beam_decode(
            TextLogits(model), _reorder, cache, image_ids.shape[0], model.config.num_text_tokens,
            beam_size=config.beam_size, alpha=config.length_penalty, bos_id=model.config.bos_id,
            suppressed=suppressed_ids(model), device=image_ids.device,
        )  # fmt: skip
