"""The objectives against dense one-hot references written from the specification, and leaks of what must be hidden.

The reference works on one-hot pictures [B, N, C] and texts [B, L, V] of all slots, without dropping or gathering until
the encoder is called; it shares only the three networks (tested elsewhere) with the code.
"""

import itertools
import math

import pytest
import torch

from itit import inference, objectives
from itit.masking import Masking
from itit.models import Text
from itit.noise import Noise
from itit.tasks import SAMPLES, TASKS, WHOLE_BATCH, Loss
from tests.helpers.tiny import (
    gradients,
    loss_of,
    make_case,
    make_config,
    random_images,
    random_masking,
    random_texts,
    seeds,
)


def onehot(ids, classes):
    return (ids[..., None] == torch.arange(classes)).float()


def encode(model, dense, masking, text):
    """dense [B, N, C] one-hot or straight-through pictures -> the encoder's two outputs."""
    table = model.encoder.token_embed.weight
    embeds = torch.where(masking.mask[..., None], table[-1], dense @ table[:-1])
    rows = torch.arange(len(dense))[:, None]
    return model.encoder(embeds[rows, masking.kept], masking.kept, *text)


def image_logits(model, image, other, masking, text):
    decoder = model.image_decoder
    x = decoder(image, other, masking.kept, masking.mask, text.mask)
    x = decoder.head_norm(torch.nn.functional.gelu(decoder.head_in(x)))
    return x @ model.encoder.token_embed.weight[:-1].T + decoder.head.bias


def text_logits(model, text_ids, image, masking):
    """Memory: the encoded slots that are not masked."""
    start = torch.full((len(text_ids), 1), model.config.bos_id)
    visible = torch.stack([~masking.mask[row, masking.kept[row]] for row in range(len(text_ids))])
    return model.text_decoder(torch.cat([start, text_ids[:, :-1]], 1), image, visible)


def smoothed(logits, ids, counts):
    """Mean over the tokens of `counts` of the cross-entropy with a tenth of the target spread over all classes."""
    classes = logits.shape[-1]
    target = 0.9 * onehot(ids, classes) + 0.1 / classes
    return -(target * logits.log_softmax(-1)).sum(-1)[counts].mean()


def scaled(z):
    return 0.1 * z + (0.9 * z).detach()


def straight_through(logits):
    probs = logits.softmax(-1)
    return (onehot(logits.argmax(-1), logits.shape[-1]) - probs).detach() + probs


def reference_i2t(case, dense, masking):
    image, other = encode(case.model, dense, masking, case.empty.expand(len(dense)))
    loss = smoothed(text_logits(case.model, case.text_ids, scaled(image), masking), case.text_ids, case.text_ids != 0)
    return loss, image, other


def reference_t2i(case, text, masking):
    dense = onehot(case.image_ids, case.config.model.codebook_size)
    logits = image_logits(case.model, *encode(case.model, dense, masking, text), masking, text)
    return smoothed(logits, case.image_ids, masking.mask)


def reference_t2i2t(case, image_ids, gumbel, keep_visible=True, stop=False, stop_first=True):
    first, second = case.t2i_masking, case.i2t_masking
    given = onehot(image_ids, case.config.model.codebook_size)
    with torch.set_grad_enabled(not stop_first):
        image, other = encode(case.model, given, first, case.text)
    dense = straight_through(image_logits(case.model, image, other, first, case.text) + gumbel)
    if stop:
        dense = dense.detach()
    if keep_visible:
        dense = torch.where(first.mask[..., None], dense, given)
    return reference_i2t(case, dense, second)[0]


def reference_i2t2i(case, text_ids, pad_after_eos=True, stop=False, stop_first=True, gumbel=0.0):
    first, second = case.i2t_masking, case.t2i_masking
    dense = onehot(case.image_ids, case.config.model.codebook_size)
    with torch.set_grad_enabled(not stop_first):
        image, _ = encode(case.model, dense, first, case.empty.expand(len(dense)))
    logits = text_logits(case.model, text_ids, image, first)
    allowed = torch.ones(logits.shape[-1], dtype=torch.bool)
    allowed[[0, case.config.model.bos_id]] = False
    words = straight_through(torch.where(allowed, logits, torch.tensor(-1e9)) + gumbel)
    if stop:
        words = words.detach()
    mask = torch.ones_like(text_ids, dtype=torch.bool)
    if pad_after_eos:
        for row, ids in enumerate(text_ids.tolist()):
            if 1 in ids:
                mask[row, ids.index(1) + 1 :] = False
    words = torch.where(mask[..., None], words, onehot(torch.zeros_like(text_ids), logits.shape[-1]))
    features = case.t5(embeds=words @ case.t5.token_embed.weight, mask=mask)
    return reference_t2i(case, Text(features, mask), second)


def agree(case, task, expected):
    found = loss_of(case, task)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(case.model, found), gradients(case.model, expected)
    for name, grad in theirs.items():
        scale = grad.abs().max().item()
        torch.testing.assert_close(
            ours[name], grad, rtol=1e-3, atol=1e-6 + 1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("seed", seeds(2))
def test_paired_objectives_equal_the_reference(seed):
    case = make_case(seed)
    agree(case, "t2i", reference_t2i(case, case.text, case.t2i_masking))
    agree(case, "i2i", reference_t2i(case, case.empty.expand(4), case.t2i_masking))
    dense = onehot(case.image_ids, case.config.model.codebook_size)
    agree(case, "i2t", reference_i2t(case, dense, case.i2t_masking)[0])
    _, image, other = reference_i2t(case, dense, case.i2t_masking)
    logits = image_logits(case.model, image, other, case.i2t_masking, case.empty.expand(4))
    agree(case, "i2t_i2i", smoothed(logits, case.image_ids, case.i2t_masking.mask))
    start = torch.full((4, 1), case.config.model.bos_id)
    logits = case.model.text_decoder(torch.cat([start, case.text_ids[:, :-1]], 1))
    agree(case, "t2t", smoothed(logits, case.text_ids, case.text_ids != 0))


def with_synthesis(monkeypatch, seed, **flags):
    """A case whose synthesized picture and text are given, and whose Gumbel noise is dense."""
    case = make_case(seed, **flags)
    generator = torch.Generator().manual_seed(seed + 1)
    image_ids = random_images(4, case.config, generator)
    text_ids = random_texts(4, case.config, generator)
    text_ids[2] = torch.randint(2, 40, (8,), generator=generator)  # never ends
    monkeypatch.setattr(inference, "generate", lambda *args, **kwargs: image_ids)
    monkeypatch.setattr(inference, "caption_greedy", lambda *args, **kwargs: text_ids)
    uniform = torch.rand(4, 16, 32, generator=generator).clamp(1e-5)
    kept = uniform[torch.arange(4)[:, None], case.i2t_masking.kept]

    def noise(name, shape):
        assert name == "t2i2t/gumbel"
        assert shape == kept.shape
        return kept

    return case._replace(noise=noise), image_ids, text_ids, -(-uniform.log()).log()


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("keep", [True, False])
def test_full_t2i2t_equals_the_reference(monkeypatch, seed, keep):
    case, image_ids, _, gumbel = with_synthesis(monkeypatch, seed, cycle_keep_visible=keep)
    agree(case, "t2i2t", reference_t2i2t(case, image_ids, gumbel, keep_visible=keep))


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("pad", [True, False])
def test_full_i2t2i_equals_the_reference(monkeypatch, seed, pad):
    case, _, text_ids, _ = with_synthesis(monkeypatch, seed, cycle_pad_after_eos=pad)
    agree(case, "i2t2i", reference_i2t2i(case, text_ids, pad_after_eos=pad))


@pytest.mark.parametrize("seed", seeds(2))
def test_half_cycles_equal_the_reference_in_both_forms(monkeypatch, seed):
    half = dict(t2i2t="half", i2t2i="half")
    case, image_ids, text_ids, gumbel = with_synthesis(monkeypatch, seed, half_cycle="stop_gradient", **half)
    agree(case, "t2i2t", reference_t2i2t(case, image_ids, gumbel, stop=True))
    agree(case, "i2t2i", reference_i2t2i(case, text_ids, stop=True))
    case, image_ids, text_ids, _ = with_synthesis(monkeypatch, seed, half_cycle="pseudo_pair", **half)
    pseudo = onehot(image_ids, case.config.model.codebook_size)
    agree(case, "t2i2t", reference_i2t(case, pseudo, case.i2t_masking)[0])
    with torch.no_grad():
        features = case.t5(ids=text_ids, mask=text_ids != 0)
    agree(case, "i2t2i", reference_t2i(case, Text(features, text_ids != 0), case.t2i_masking))


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_gumbel_strength_scales_the_noise(monkeypatch, strength):
    case, image_ids, _, gumbel = with_synthesis(monkeypatch, seeds(1)[0], gumbel_strength=strength)
    agree(case, "t2i2t", reference_t2i2t(case, image_ids, strength * gumbel))


@pytest.mark.parametrize("seed", seeds(3))
def test_contents_of_masked_slots_change_nothing_but_the_target(seed):
    case = make_case(seed)
    other = random_images(4, case.config, torch.Generator().manual_seed(seed + 1))
    for masking in (case.t2i_masking, case.i2t_masking):
        changed = torch.where(masking.mask, other, case.image_ids)
        seen = [_everything(case, ids, masking) for ids in (case.image_ids, changed)]
        assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
        visible = torch.where(masking.mask, case.image_ids, (case.image_ids + 1) % 32)
        moved = _everything(case, visible, masking)
        assert not any(torch.equal(a, b) for a, b in zip(seen[0], moved, strict=True))


def _everything(case, image_ids, masking):
    """Encoder output, picture logits and caption logits."""
    encoded = case.model.encode(case.model.embed(image_ids, masking), masking, case.text)
    logits = case.model.image_logits(case.model.decode_image(encoded, masking))
    return encoded.image, logits, case.model.text_logits(case.text_ids, encoded, masking)


@pytest.mark.parametrize("seed", seeds(2))
def test_the_cycle_does_not_see_what_its_first_pass_hides(monkeypatch, seed):
    case, image_ids, _, _ = with_synthesis(monkeypatch, seed)
    first = case.t2i_masking.mask
    other = random_images(4, case.config, torch.Generator().manual_seed(seed + 2))
    base = loss_of(case, "t2i2t")
    for changed, same in ((first, True), (~first, False)):
        image = torch.where(changed, other, image_ids)
        monkeypatch.setattr(inference, "generate", lambda *args, image=image, **kwargs: image)
        assert torch.equal(loss_of(case, "t2i2t"), base) == same


@pytest.mark.parametrize("seed", seeds(2))
def test_later_words_do_not_reach_earlier_losses(seed):
    case = make_case(seed)
    encoded = case.model.encode(case.model.embed(case.image_ids, case.i2t_masking), case.i2t_masking, case.text)
    base = case.model.text_logits(case.text_ids, encoded, case.i2t_masking)
    for slot in range(8):
        changed = case.text_ids.clone()
        changed[:, slot:] = (changed[:, slot:] + 3) % 40
        found = case.model.text_logits(changed, encoded, case.i2t_masking)
        assert torch.equal(found[:, : slot + 1], base[:, : slot + 1])
        assert slot == 7 or not torch.equal(found[:, slot + 1 :], base[:, slot + 1 :])


def test_draws_of_all_passes_follow_their_laws_and_differ():
    config = make_config(num_image_tokens=256, num_decode_steps=1)
    sizes = dict.fromkeys(TASKS, 400)
    seed = seeds(1)[0]
    found = objectives.draw_maskings(Noise(seed, 0, "cpu"), sizes, 256, config.objective, torch.device("cpu"))
    means = dict.fromkeys(("t2i", "t2i2t/first", "i2t2i/second", "i2i"), 192.5)
    means |= dict.fromkeys(("i2t", "t2i2t/second", "i2t2i/first"), 163.1)
    assert found.keys() == means.keys()
    for name, mean in means.items():
        counts = found[name].mask.sum(1)
        high = 256 if mean > 180 else 192
        assert 128 <= counts.min() <= counts.max() <= high, f"{name}, seed {seed}"
        assert abs(counts.float().mean() - mean) < 9, f"{name}, seed {seed}"
        assert (found[name].mask.float().mean(0) < mean / 256 + 0.15).all(), "no slot is favoured"
        assert found[name].kept.shape == (400, 128)
    for name, other in itertools.combinations(found, 2):
        a, b = found[name].mask, found[other].mask
        assert (a != b).any(1).float().mean() > 0.9, f"{name} and {other} mask alike, seed {seed}"
        assert (a.sum(1) == b.sum(1)).float().mean() < 0.2, f"{name} and {other} share their ratios, seed {seed}"
    assert objectives.draw_maskings(Noise(1, 0, "cpu"), {"t2t": 3}, 256, config.objective, torch.device("cpu")) == {}


@pytest.mark.parametrize("seed", seeds(2))
def test_totals_against_counting(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    config = make_config()
    sizes = {task: rows for rows, task in enumerate(TASKS, 3)}
    maskings, masked = {}, {}
    for task, row in TASKS.items():
        for name in row.passes:
            counts = torch.randint(8, 17, (sizes[task],), generator=generator).tolist()
            maskings[name], masked[name] = random_masking(counts, 16, 8, generator), sum(counts)
    texts = {task: random_texts(rows, config, generator) for task, rows in sizes.items() if TASKS[task].has_text}
    words = {task: sum(word != 0 for row in ids.tolist() for word in row) for task, ids in texts.items()}
    found = objectives.totals(maskings, texts, sizes, config.objective, "cpu")
    assert {name: value.item() for name, value in found.items()} == {
        "t2i": masked["t2i"], "i2t_i2i": masked["i2t"], "i2t2i": masked["i2t2i/second"], "i2i": masked["i2i"],
        "i2t": words["i2t"], "t2i2t": words["t2i2t"], "t2t": words["t2t"],
    }  # fmt: skip
    sample = objectives.totals(maskings, texts, sizes, make_config(image_loss_mean="sample").objective, "cpu")
    for name, task in (("t2i", "t2i"), ("i2t_i2i", "i2t"), ("i2t2i", "i2t2i"), ("i2i", "i2i")):
        assert math.isclose(sample[name].item(), sizes[task], rel_tol=1e-5)
    losses = {"of samples": Loss("", SAMPLES), "of the batch": Loss("", WHOLE_BATCH)}
    monkeypatch.setitem(TASKS, "t2t", TASKS["t2t"]._replace(losses=losses))
    found = objectives.totals({}, texts, {"t2t": 7}, config.objective, "cpu")
    assert found == {"of samples": 7, "of the batch": 1}


def test_the_empty_text():
    assert objectives.empty_ids(5, torch.device("cpu")).tolist() == [[1, 0, 0, 0, 0]]


def test_other_sizes_64_tokens_of_which_32_are_dropped():
    case = make_case(seeds(1)[0], num_image_tokens=64, num_text_tokens=12)
    maskings = objectives.draw_maskings(
        case.noise, {"t2i": 4, "i2t": 4}, 64, case.config.objective, torch.device("cpu")
    )
    assert all(isinstance(x, Masking) and x.kept.shape == (4, 32) for x in maskings.values())
    case = case._replace(t2i_masking=maskings["t2i"], i2t_masking=maskings["i2t"])
    agree(case, "t2i", reference_t2i(case, case.text, case.t2i_masking))
    for task in ("i2t", "t2i2t", "i2t2i"):
        assert torch.isfinite(loss_of(case, task))


@pytest.mark.parametrize("seed", seeds(2))
def test_the_first_pass_may_have_its_gradient(monkeypatch, seed):
    case, image_ids, text_ids, gumbel = with_synthesis(monkeypatch, seed, cycle_stop_gradient=False)
    agree(case, "t2i2t", reference_t2i2t(case, image_ids, gumbel, stop_first=False))
    agree(case, "i2t2i", reference_i2t2i(case, text_ids, stop_first=False))


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_image_text_image_may_have_gumbel_noise(monkeypatch, strength):
    case, _, text_ids, _ = with_synthesis(monkeypatch, seeds(1)[0], i2t2i_gumbel_strength=strength)
    uniform = torch.rand(4, text_ids.shape[1], case.config.model.vocab_size).clamp(1e-5)

    def noise(name, shape):
        assert name == "i2t2i/gumbel" and shape == uniform.shape
        return uniform

    expected = reference_i2t2i(case, text_ids, gumbel=strength * -(-uniform.log()).log())
    agree(case._replace(noise=noise), "i2t2i", expected)
