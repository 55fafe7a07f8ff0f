"""What ITIT learns from (paper sec. 3, figures 2 and 3): pairs, and the two cycles on unpaired pictures and texts.

    t2i     text, part of the picture   -> the rest of the picture        eq. 2
    i2t     part of the picture         -> text                           eq. 1
    i2i     part of the picture         -> the rest of the picture        sec. 7, for guidance
    t2i2t   text -> picture -> text                                       eq. 3
    i2t2i   picture -> text -> picture                                    eq. 4
    t2t     text so far -> next token, no picture                         table 2, rows 5 and 7

The loss of a task (a row of `tasks.py`) is the function of its name. All have one signature, and return name -> loss,
float32, 0-d, for every loss of the row:

    loss(model, t5, given, noise, config)    the networks, what the task gives (`Given`), draws, an ObjectiveConfig

They hold nothing. A total is what counts in the whole batch (see `totals`), so that the losses of its parts add up.

Shapes: B batch, N image tokens, K kept image tokens, L text tokens, C codebook, V vocabulary.
"""

import contextlib
from typing import NamedTuple

import torch

from itit import inference
from itit.decoding import EOS, PAD, suppress
from itit.losses import token_cross_entropy
from itit.masking import draw_masking, mask_ratio, num_dropped
from itit.models import Text
from itit.noise import gumbel, prefixed
from itit.ops import take_tokens
from itit.straight_through import scale_gradient, straight_through_embed
from itit.tasks import MASKED, SAMPLES, TASKS, WHOLE_BATCH, WORDS


class Given(NamedTuple):
    """What a loss is computed from: a microbatch of one task. What its samples do not have is None.

    Attributes:
      image_ids, text_ids: int64 [B, N], int64 [B, L]; of a cycle, one of them is what it has made of the other.
      text: the Text of the given texts, where the task reads features.
      empty: the empty Text, of one row.
      maskings: pass -> Masking.
      totals: loss -> what counts in the whole batch, float32, 0-d.
    """

    image_ids: torch.Tensor | None
    text_ids: torch.Tensor | None
    text: Text | None
    empty: Text
    maskings: dict
    totals: dict


def t2i(model, t5, given, noise, config):
    """Text-to-image: cross-entropy of the masked tokens, given the others and the text (eq. 2)."""
    text = drop_text(given.text, given.empty, noise, config.t2i_text_drop_prob)
    return {"t2i": _paint(model, given.image_ids, text, given.maskings["t2i"], given.totals["t2i"], config)}


def i2i(model, t5, given, noise, config):
    """Image-to-image: the same without a text."""
    empty = given.empty.expand(len(given.image_ids))
    return {"i2i": _paint(model, given.image_ids, empty, given.maskings["i2i"], given.totals["i2i"], config)}


def i2t(model, t5, given, noise, config):
    """Image-to-text (eq. 1), and image-to-image from the same encoder pass."""
    image_ids, masking = given.image_ids, given.maskings["i2t"]
    encoded = model.encode(model.embed(image_ids, masking), masking, given.empty.expand(len(image_ids)))
    caption = _text_loss(model, encoded, masking, given.text_ids, given.totals["i2t"], config)
    if config.i2t_i2i_weight == 0:
        return {"i2t": caption, "i2t_i2i": caption.new_zeros(())}
    return {"i2t": caption, "i2t_i2i": _image_loss(model, encoded, masking, image_ids, given.totals["i2t_i2i"], config)}


def t2t(model, t5, given, noise, config):
    """Language modelling by the text decoder without any picture."""
    logits, weights = model.text_decoder(model.shift(given.text_ids)), _text_weights(given.text_ids)
    loss = token_cross_entropy(logits, given.text_ids, weights, given.totals["t2t"], config.label_smoothing)
    return {"t2t": loss}


def synthesize_image(model, text, empty, noise, config, decode):
    """The picture inside t2i2t: image tokens int64 [B, N] by the inference pipeline, without gradient."""
    return inference.generate(
        model, text, empty, prefixed(noise, "t2i2t/synthesis"), decode, num_steps=decode.synth_decode_steps,
        guided=decode.synth_cfg, dropped=inference.drops(model, config, decode),
    )  # fmt: skip


def t2i2t(model, t5, given, noise, config):
    """Text -> picture -> text (figure 3 top, eq. 3). The picture comes from `synthesize_image`.

    The first encoder pass gets no gradient; the caption loss reaches the image decoder through the tokens that were
    masked in the first pass and are seen in the second. Its maskings are of the reconstruction (as text-to-image) and
    of the captioning (as image-to-text); its noise is that of the Gumbel estimator.
    """
    first, second, image_ids = given.maskings["t2i2t/first"], given.maskings["t2i2t/second"], given.image_ids
    embeds = model.embed(image_ids, second)
    if config.t2i2t == "full" or config.half_cycle == "stop_gradient":
        logits = _reconstruct_image(model, image_ids, given.text, first, second, noise, config)
        if config.t2i2t == "half":
            logits = logits.detach()
        soft = straight_through_embed(logits, model.code_table, model.image_decoder.head.compute_dtype)
        masked_first, masked_second = (take_tokens(m.mask, second.kept)[..., None] for m in (first, second))
        replaced = masked_first if config.cycle_keep_visible else torch.ones_like(masked_first)
        embeds = torch.where(replaced & ~masked_second, soft, embeds)
    encoded = model.encode(embeds, second, given.empty.expand(len(image_ids)))
    return {"t2i2t": _text_loss(model, encoded, second, given.text_ids, given.totals["t2i2t"], config)}


def synthesize_text(model, image_ids, empty):
    """The text inside i2t2i: int64 [B, L], greedy, without gradient."""
    return inference.caption_greedy(model, image_ids, empty)


def i2t2i(model, t5, given, noise, config):
    """Picture -> text -> picture (figure 3 bottom, eq. 4). The text comes from `synthesize_text`.

    The first encoder pass gets no gradient; the image loss reaches the text decoder through the frozen T5. Its maskings
    are of the captioning (as image-to-text) and of the reconstruction (as text-to-image); its noise is that of the
    Gumbel estimator, which the paper leaves out here.
    """
    first, second, text_ids = given.maskings["i2t2i/first"], given.maskings["i2t2i/second"], given.text_ids
    mask = text_ids != PAD
    soft = t5.token_embed(text_ids)
    if config.i2t2i == "full" or config.half_cycle == "stop_gradient":
        predicted = _reconstruct_text(model, t5, given.image_ids, text_ids, given.empty, first, noise, config)
        if config.i2t2i == "half":
            predicted = predicted.detach()
        if config.cycle_pad_after_eos:
            soft = torch.where(mask[..., None], predicted, soft)
        else:
            soft, mask = predicted, torch.ones_like(mask)
    text = Text(t5(embeds=soft, mask=mask).float(), mask)
    return {"i2t2i": _paint(model, given.image_ids, text, second, given.totals["i2t2i"], config)}


def _reconstruct_image(model, image_ids, text, first, second, noise, config):
    """One text-to-image pass over a synthesized picture: noisy logits [B, K, C] of the tokens kept by `second`."""
    with _first_pass(config):
        encoded = model.encode(model.embed(image_ids, first), first, text)
    logits = model.image_logits(model.decode_image(encoded, first), at=second.kept)
    return logits + config.gumbel_strength * gumbel(noise("t2i2t/gumbel", logits.shape))


def _reconstruct_text(model, t5, image_ids, text_ids, empty, first, noise, config):
    """One image-to-text pass over a synthesized caption: soft T5 embeddings [B, L, F]."""
    with _first_pass(config):
        encoded = model.encode(model.embed(image_ids, first), first, empty.expand(len(image_ids)))
    logits = suppress(model.text_logits(text_ids, encoded, first), inference.suppressed_ids(model))
    if config.i2t2i_gumbel_strength:
        logits = logits + config.i2t2i_gumbel_strength * gumbel(noise("i2t2i/gumbel", logits.shape))
    return straight_through_embed(logits, t5.token_embed.weight, model.text_decoder.head.compute_dtype)


def _first_pass(config):
    """The first encoder pass of a cycle has no gradient (sec. 7), unless that is tried."""
    return torch.no_grad() if config.cycle_stop_gradient else contextlib.nullcontext()


def _paint(model, image_ids, text, masking, total, config):
    """The loss of a picture's masked tokens, given the others and a text."""
    encoded = model.encode(model.embed(image_ids, masking), masking, text)
    return _image_loss(model, encoded, masking, image_ids, total, config)


def _image_loss(model, encoded, masking, image_ids, total, config):
    logits = model.image_logits(model.decode_image(encoded, masking))
    return token_cross_entropy(logits, image_ids, _image_weights(masking.mask, config), total, config.label_smoothing)


def _text_loss(model, encoded, masking, text_ids, total, config):
    """Caption loss; the encoder gets a tenth of its gradient (sec. 7)."""
    encoded = encoded._replace(
        image=scale_gradient(encoded.image, config.text_grad_scale),
        other=scale_gradient(encoded.other, config.text_grad_scale),
    )
    logits = model.text_logits(text_ids, encoded, masking)
    return token_cross_entropy(logits, text_ids, _text_weights(text_ids), total, config.label_smoothing)


def _image_weights(mask, config):
    weights = mask.float()
    return weights if config.image_loss_mean == "global" else weights / weights.sum(1, keepdim=True)


def _text_weights(text_ids):
    return (text_ids != PAD).float()


def draw_maskings(noise, sizes, num_tokens, config, device, whole=None):
    """Draws the masks of every pass of a step.

    Args:
      sizes: task -> samples; tasks that are left out are not drawn.
      whole: noise that all parts of the batch share, for a ratio that they share; needed where there are several.

    Returns:
      Name of the pass -> Masking.
    """
    maskings, dropped = {}, num_dropped(num_tokens, config.mask_ratio_min)
    for law in ("t2i", "i2t"):  # text-to-image may mask everything, image-to-text not (table 3)
        high = getattr(config, f"mask_ratio_max_{law}")
        for task, rows in sizes.items():
            for name in (name for name, its_law in TASKS[task].passes.items() if its_law == law):
                source, shape = (noise, (rows,)) if config.mask_ratio_per == "sample" else (whole or noise, ())
                ratio = mask_ratio(source(f"{name}/ratio", shape), config.mask_ratio_mode, config.mask_ratio_std,
                                   config.mask_ratio_min, high).to(device)  # fmt: skip
                order = noise(f"{name}/mask", (rows, num_tokens)).to(device)
                maskings[name] = draw_masking(ratio.expand(rows), order, dropped)
    return maskings


def drop_text(text, empty, noise, prob):
    """Gives a share `prob` of the samples the empty text instead."""
    if prob == 0:
        return text
    dropped = noise("t2i/drop", (text.mask.shape[0], 1)) < prob
    empty = empty.expand(text.mask.shape[0])
    return Text(
        torch.where(dropped[..., None], empty.features, text.features), torch.where(dropped, empty.mask, text.mask)
    )


def totals(maskings, text_ids, sizes, config, device):
    """What counts in each loss of these tasks: name -> float32, 0-d. Sum them over the parts of a batch.

    Args:
      maskings: pass -> Masking.
      text_ids: task -> int64 [B, L].
      sizes: task -> samples.
    """
    counts = {
        MASKED: lambda task, loss: _image_weights(maskings[loss.masks].mask, config).sum(),
        WORDS: lambda task, loss: _text_weights(text_ids[task]).sum(),
        SAMPLES: lambda task, loss: torch.full((), float(sizes[task]), device=device),
        WHOLE_BATCH: lambda task, loss: torch.ones((), device=device),
    }
    return {name: count(task, loss) for mean_of, count in counts.items() for task in sizes
            for name, loss in TASKS[task].losses.items() if loss.mean_of == mean_of}  # fmt: skip


def empty_ids(num_text_tokens, device):
    """The empty text: [EOS, PAD, ...], int64 [1, L]."""
    ids = torch.full((1, num_text_tokens), PAD, dtype=torch.long, device=device)
    ids[:, 0] = EOS
    return ids
