"""The whole model: its size, what may not reach what, ties, and that a sample does not see its neighbours."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from itit import masking
from itit.config import Config, replace
from itit.models import ITITModel, Text, encode_text
from itit.models.layers import set_compute_dtype
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tests.helpers.tiny import draw_flags, seeds


def random_masking(batch=2, tokens=16, ratio=None):
    ratio = torch.full((batch,), ratio) if ratio else 0.5 + 0.25 * torch.rand(batch)
    return masking.draw_masking(ratio, torch.rand(batch, tokens), tokens // 2)


def logits_of(model, image_ids, text_ids, draw, text):
    encoded = model.encode(model.embed(image_ids, draw), draw, text)
    return model.image_logits(model.decode_image(encoded, draw)), model.text_logits(text_ids, encoded, draw)


@pytest.mark.parametrize(("preset", "millions"), [("B", 220.8), ("L", 486.5), ("H", 875.2)])
def test_parameter_counts(preset, millions):
    config = replace(Config(), preset=preset).resolve()
    with torch.device("meta"):
        model = ITITModel(config.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_parameter_counts_of_the_parts():
    with torch.device("meta"):
        model = ITITModel(Config().resolve().model)

    def count(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)

    assert count(model.encoder.blocks) == 85.05  # and the last LayerNorm, .0015
    assert count(model.image_decoder.blocks) == 56.70
    assert count(model.text_decoder.blocks) == 42.53
    assert count(model.text_decoder.token_embed) == 24.67
    assert count(model.encoder.token_embed) == 6.29
    assert count(model.encoder.text_in) == 3.15


@pytest.mark.parametrize("kind", ["visible", "kept", "all"])
def test_logits_do_not_see_masked_slots_nor_later_text(kind):
    config, model = small.small(text_memory=kind), small.small_model(text_memory=kind)
    image_ids, text_ids = torch.randint(40, (2, 16)), small.random_texts(2, config)
    draw, text = random_masking(), small.random_text(2, config)
    image, caption = logits_of(model, image_ids, text_ids, draw, text)
    changed = torch.where(draw.mask, torch.randint(40, (2, 16)), image_ids)
    for a, b in zip((image, caption), logits_of(model, changed, text_ids, draw, text), strict=True):
        assert torch.equal(a, b)
    moved = torch.where(draw.mask, image_ids, (image_ids + 1) % 40)
    for a, b in zip((image, caption), logits_of(model, moved, text_ids, draw, text), strict=True):
        assert not torch.isclose(a, b).all(-1).any()  # every token sees what is visible
    for position in range(8):
        later = text_ids.clone()
        later[:, position:] = torch.randint(48, later[:, position:].shape)
        _, other = logits_of(model, image_ids, later, draw, text)
        torch.testing.assert_close(other[:, : position + 1], caption[:, : position + 1])


def test_the_memory_of_captions_hides_what_is_masked():
    config, model = small.small(), small.small_model()
    image_ids, text_ids, draw = torch.randint(40, (2, 16)), small.random_texts(2, config), random_masking()
    encoded = model.encode(model.embed(image_ids, draw), draw, small.random_text(2, config))
    expected = model.text_logits(text_ids, encoded, draw)
    kept_masked = torch.stack([m[k] for m, k in zip(draw.mask, draw.kept, strict=True)])
    assert kept_masked.any()
    noise = torch.randn_like(encoded.image)
    changed = encoded._replace(image=torch.where(kept_masked[..., None], noise, encoded.image),
                               other=torch.randn_like(encoded.other))  # fmt: skip
    assert torch.equal(model.text_logits(text_ids, changed, draw), expected)
    for kind, seen in (("kept", True), ("all", True)):
        other = small.small_model(text_memory=kind)
        a, b = other.text_logits(text_ids, encoded, draw), other.text_logits(text_ids, changed, draw)
        assert torch.equal(a, b) != seen
    memory, mask = small.small_model(text_memory="all").memory(encoded, draw)
    assert memory.shape[1] == mask.shape[1] == 8 + 8 and mask.all()


def test_kept_tokens_keep_their_own_embedding_and_masked_ones_get_the_mask_row():
    model, draw, image_ids = small.small_model(), random_masking(3), torch.randint(40, (3, 16))
    embeds, table = model.embed(image_ids, draw), model.encoder.token_embed.weight
    for b in range(3):
        for slot, position in enumerate(draw.kept[b].tolist()):
            row = 40 if draw.mask[b, position] else int(image_ids[b, position])
            assert torch.equal(embeds[b, slot], table[row])


def test_decoder_input_is_bos_and_the_targets_but_the_last():
    model, ids = small.small_model(), torch.randint(40, (2, 8))
    assert model.shift(ids).tolist() == [[47, *row[:-1]] for row in ids.tolist()]


def test_the_tied_code_table_learns_by_both_uses():
    for detached in (False, True):
        config, model = small.small(), small.small_model(detach_tied_table=detached)
        draw = random_masking(2, ratio=0.6)
        image_ids = torch.randint(20, (2, 16))  # the upper half of the codes is in no input
        image, _ = logits_of(model, image_ids, small.random_texts(2, config), draw, small.random_text(2, config))
        image.square().sum().backward()
        grad = model.encoder.token_embed.weight.grad
        visible = image_ids[~draw.mask]
        assert grad[visible].any(-1).all()  # by the input
        assert grad[20:40].any(-1).all() != detached  # by the output alone
        assert grad[40].any()  # [MASK], where kept
        assert not (detached and grad[20:40].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_does_not_see_its_neighbours(dtype):
    config, model = small.small(text_key_mask=True), small.small_model(text_key_mask=True)
    set_compute_dtype(model, dtype)
    image_ids, text_ids = torch.randint(40, (5, 16)), small.random_texts(5, config)
    draw, text = random_masking(5), small.random_text(5, config)
    together = logits_of(model, image_ids, text_ids, draw, text)
    for b in range(5):
        row = slice(b, b + 1)
        part = masking.Masking(draw.mask[row], draw.kept[row])
        alone = logits_of(model, image_ids[row], text_ids[row], part, Text(text.features[row], text.mask[row]))
        for a, b_logits in zip(together, alone, strict=True):
            tolerance = 1e-5 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(a[row], b_logits, atol=tolerance, rtol=tolerance)


class Products(TorchDispatchMode):
    """Notes the types of what is multiplied inside."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.dtypes |= {x.dtype for x in args}
        return function(*args, **kwargs or {})


def products_of(model, config):
    """The types of what the passes of training and of generation multiply, under bf16."""
    set_compute_dtype(model, torch.bfloat16)
    text, draw = small.random_text(2, config), random_masking()
    ids, text_ids = torch.randint(config.model.codebook_size, (2, 16)), small.random_texts(2, config)
    with Products() as products:
        sum(x.sum() for x in logits_of(model, ids, text_ids, draw, text)).backward()
        encoded = model.encode(model.embed(ids, draw), draw, text)
        cache = model.text_decoder.start(*model.memory(encoded, draw))
        model.text_decoder.step(text_ids[:, 0], torch.tensor([0]), cache)
    return products.dtypes


@pytest.mark.parametrize("seed", seeds(3))
def test_all_products_run_in_the_type_that_is_asked_for(seed):
    """A plain nn.Linear somewhere below ITIT would stay float32, and say nothing."""
    flags = draw_flags(seed)
    model, config = small.small_model(**flags), small.small(**flags)
    assert products_of(model, config) == {torch.bfloat16}, flags
    model.image_decoder.blocks[1].mlp.up = torch.nn.Linear(*model.image_decoder.blocks[1].mlp.up.weight.shape[::-1])
    assert torch.float32 in products_of(model, config)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_bf16_is_close_to_float32(norm):
    config, model = small.small(text_decoder_norm=norm), small.small_model(text_decoder_norm=norm)
    inputs = torch.randint(40, (4, 16)), small.random_texts(4, config), random_masking(4), small.random_text(4, config)
    exact = logits_of(model, *inputs)
    set_compute_dtype(model, torch.bfloat16)
    for a, b in zip(exact, logits_of(model, *inputs), strict=True):
        assert b.dtype == torch.float32
        error = (a - b).square().mean().sqrt() / a.square().mean().sqrt()
        assert 0 < error < 0.05
    sum(x.square().mean() for x in logits_of(model, *inputs)).backward()
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters() if p.grad is not None}


def test_empty_text():
    given = small.empty_text(small.small())
    assert torch.equal(small.small_model().empty_text(given).features, given.features)
    zeros = small.small_model(empty_text="zeros").empty_text(given)
    assert not zeros.features.any() and torch.equal(zeros.mask, given.mask)
    model = small.small_model(empty_text="learned")
    learned = model.empty_text(given)
    assert torch.equal(learned.features[0, 0], model.encoder.empty_text) and not learned.features[0, 1:].any()
    learned.features.sum().backward()
    assert model.encoder.empty_text.grad.any()


def test_pads_after_eos_do_not_reach_the_features_of_the_text():
    config, t5 = small.small(), small.small_t5()
    ids = small.random_texts(4, config)
    text = encode_text(t5, ids)
    for row in range(4):
        length = int((ids[row] != 0).sum())
        alone = encode_text(t5, ids[row : row + 1, :length])
        torch.testing.assert_close(text.features[row, :length], alone.features[0], atol=1e-5, rtol=1e-4)
        assert text.mask[row].tolist() == [True] * length + [False] * (8 - length)
    assert not text.features.requires_grad


def test_initial_weights_of_the_whole():
    model = ITITModel(replace(Config(), preset="nano", codebook_size=512, vocab_size=600, bos_id=599, t5_size="nano")
                 .resolve().model)  # fmt: skip
    for name, p in model.named_parameters():
        if p.ndim == 1 and not name.endswith("mask_vector"):
            assert (p == float("norm" in name and name.endswith("weight"))).all(), name
        elif name.endswith(("positions", "token_embed.weight", "mask_vector")):
            assert p.std().item() == pytest.approx(0.02, rel=0.25), name
        else:
            assert p.var().item() == pytest.approx(2 / sum(p.shape), rel=0.1), name
