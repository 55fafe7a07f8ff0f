"""The two inference pipelines (paper sec. 7): text to image tokens, and image tokens to text.

Binds a model to `decoding`. The cycles synthesize with the same functions that generate for a person.

Shapes: B batch, N image tokens, L text tokens, C codebook.
"""

import contextlib

import torch

from itit import decoding
from itit.masking import decode_schedule, drop_masked, keep_all, num_dropped
from itit.models import Text


@contextlib.contextmanager
def inference_mode(model):
    """No gradient and no dropout inside; the model's mode is restored after."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def drops(model, objective, decode):
    """How many masked tokens `generate` drops: as many as training (ObjectiveConfig), or none (DecodeConfig)."""
    return num_dropped(model.config.num_image_tokens, objective.mask_ratio_min) if decode.synth_drop_masked else 0


def generate(model, text, empty, noise, config, *, dropped=0, num_steps=None, guided=True, image_ids=None):
    """Text to image tokens by guided parallel decoding.

    Args:
      text, empty: Text of B rows, Text of one row.
      config: DecodeConfig.
      dropped: masked tokens that the encoder does not see, where that many are masked (see `drops`).
      num_steps: default config.num_decode_steps.
      guided: with guidance, which runs every row twice.
      image_ids: int64 [B, N] to start from, masked tokens marked; default all masked.

    Returns:
      int64 [B, N].
    """
    num_steps = num_steps or config.num_decode_steps
    num_tokens, batch = model.config.num_image_tokens, text.mask.shape[0]
    num_masked = decode_schedule(num_tokens, num_steps)
    if image_ids is None:
        image_ids = torch.full((batch, num_tokens), model.mask_token_id, dtype=torch.long, device=text.mask.device)
    else:
        dropped = 0  # nobody knows how many are masked
    if guided:  # rows of one sample lie side by side
        pair = [torch.stack([a, b.expand_as(a)], 1).flatten(0, 1) for a, b in zip(text, empty, strict=True)]
        text = Text(*pair)

    def logits_fn(ids, step):
        mask = ids == model.mask_token_id
        if guided:
            ids, mask = ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)
        masking = drop_masked(mask, dropped) if 0 < dropped <= num_masked[step] else keep_all(mask)
        # Masked slots are embedded as [MASK] whatever they hold; 0 is a valid row for the lookup.
        ids = ids.masked_fill(mask, 0)
        encoded = model.encode(model.embed(ids, masking), masking, text)
        logits = model.image_logits(model.decode_image(encoded, masking))
        if not guided:
            return logits
        logits = logits.view(batch, 2, *logits.shape[1:])
        scale = decoding.ramp(config.guidance_scale, config.guidance_schedule, step, num_steps)
        return decoding.guide(logits[:, 0], logits[:, 1], scale)

    with inference_mode(model):
        return decoding.parallel_decode(
            logits_fn, image_ids, noise, num_steps=num_steps, mask_token_id=model.mask_token_id,
            choice_temperature=config.choice_temperature, anneal=config.choice_anneal,
        )  # fmt: skip


def _start_caption(model, image_ids, empty):
    masking = keep_all(torch.zeros_like(image_ids, dtype=torch.bool))
    encoded = model.encode(model.embed(image_ids, masking), masking, empty.expand(image_ids.shape[0]))
    return model.text_decoder.start(*model.memory(encoded, masking))


def suppressed_ids(model):
    """Ids that no text contains: PAD (it follows EOS by rule, not by choice) and BOS."""
    return [decoding.PAD, model.config.bos_id]


def caption_greedy(model, image_ids, empty):
    """Image tokens int64 [B, N] to text int64 [B, L]; PAD after EOS. The synthesis of the image-text-image cycle."""
    with inference_mode(model):
        cache = _start_caption(model, image_ids, empty)
        return decoding.greedy_decode(
            lambda token, position: model.text_decoder.step(token, position, cache),
            image_ids.shape[0], model.config.num_text_tokens, bos_id=model.config.bos_id,
            suppressed=suppressed_ids(model), device=image_ids.device,
            early_exit=image_ids.device.type == "cpu",  # elsewhere the look at the data would hold the step up
        )  # fmt: skip


def caption_beam(model, image_ids, empty, config):
    """Image tokens int64 [B, N] to text int64 [B, L] by beam search, with the beams and penalty of a DecodeConfig."""
    with inference_mode(model):
        cache = _start_caption(model, image_ids, empty)
        batch, beams = image_ids.shape[0], config.beam_size
        cache.reorder(torch.arange(batch, device=image_ids.device).repeat_interleave(beams))
        return decoding.beam_decode(
            lambda token, position: model.text_decoder.step(token, position, cache), cache.reorder,
            batch, model.config.num_text_tokens, beam_size=beams, alpha=config.length_penalty,
            bos_id=model.config.bos_id, suppressed=suppressed_ids(model), device=image_ids.device,
        )  # fmt: skip
