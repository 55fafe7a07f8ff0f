"""Each flag of the model and the objectives does what its help says: one sharp test for each."""

import pytest
import torch

from itit import inference, objectives
from itit.masking import draw_masking
from itit.models import Text
from itit.noise import Noise
from itit.ops import take_tokens
from tests.helpers.tiny import gradients, loss_of, make_case, make_config, seeds

TOKENS, WORDS = 16, 8


def encode(case, masking, text=None):
    return case.model.encode(case.model.embed(case.image_ids, masking), masking, text or case.text)


def image_logits(case, encoded, masking):
    return case.model.image_logits(case.model.decode_image(encoded, masking))


def moved(x, where):
    """x with other values in the rows where `where`, bool [B, K], is True."""
    return torch.where(where[..., None], torch.randn_like(x), x)


def kept_masked(masking):
    return take_tokens(masking.mask, masking.kept)


def test_class_token_adds_one_slot_that_learns_and_is_seen():
    case = make_case(seeds(1)[0], class_token=True)
    encoded = encode(case, case.t2i_masking)
    assert encoded.other.shape[1] == WORDS + 1
    assert encoded.other_mask[:, 0].all()
    assert len(case.model.image_decoder.positions) == TOKENS + WORDS + 1
    for task in ("t2i", "i2t", "t2i2t", "i2t2i"):
        assert (gradients(case.model, loss_of(case, task))["encoder.class_token"] != 0).any(), task


@pytest.mark.parametrize("hidden", [True, False])
def test_text_key_mask_hides_pad_slots(hidden):
    case = make_case(seeds(1)[0], text_key_mask=hidden)
    pads = (~case.text.mask)[0]  # the shortest text; row 1 has no PAD
    results = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            case.model.encoder.text_positions[pads] += shift * torch.randn(int(pads.sum()), 32)
        encoded = encode(case, case.t2i_masking)
        results.append((encoded.image[0], image_logits(case, encoded, case.t2i_masking)[0]))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6) == hidden


@pytest.mark.parametrize("positions", [True, False])
def test_without_text_positions_the_order_of_the_slots_is_lost(positions):
    case = make_case(seeds(1)[0], text_positions=positions)
    turned = Text(case.text.features.flip(1), case.text.mask.flip(1))
    straight, flipped = encode(case, case.t2i_masking), encode(case, case.t2i_masking, turned)
    assert torch.allclose(straight.image, flipped.image, atol=1e-5) == (not positions)


def test_kinds_of_empty_text():
    seed = seeds(1)[0]
    found = {kind: make_case(seed, empty_text=kind) for kind in ("t5", "zeros", "learned")}
    expected = found["t5"].t5(ids=torch.tensor([[1] + [0] * 7]), mask=torch.tensor([[True] + [False] * 7]))
    torch.testing.assert_close(found["t5"].empty.features[:, 0], expected[:, 0])
    assert (found["zeros"].empty.features == 0).all()
    learned = found["learned"]
    assert torch.equal(learned.empty.features[0, 0], learned.model.encoder.empty_text)
    assert all(case.empty.mask.tolist() == [[True] + [False] * 7] for case in found.values())
    for task, learns in (("i2t", True), ("i2i", True), ("t2i2t", True), ("t2i", False), ("i2t2i", False)):
        grad = gradients(learned.model, loss_of(learned._replace(empty=_fresh_empty(learned)), task))
        assert (grad["encoder.empty_text"] != 0).any() == learns, task


def _fresh_empty(case):
    return case.model.empty_text(Text(case.empty.features.detach(), case.empty.mask))


def test_what_the_text_decoder_sees_by_text_memory():
    for kind, sees_masked, sees_text in (("visible", False, False), ("kept", True, False), ("all", True, True)):
        case = make_case(seeds(1)[0], text_memory=kind)
        masking = draw_masking(torch.full((4,), 0.7), torch.rand(4, TOKENS), 8)
        encoded = encode(case, masking)
        base = case.model.text_logits(case.text_ids, encoded, masking)
        hidden = kept_masked(masking)
        assert hidden.any(1).all()
        for change, seen in (
            (encoded._replace(image=moved(encoded.image, hidden)), sees_masked),
            (encoded._replace(other=torch.randn_like(encoded.other)), sees_text),
            (encoded._replace(image=moved(encoded.image, ~hidden)), True),
        ):
            found = case.model.text_logits(case.text_ids, change, masking)
            assert torch.equal(found, base) != seen, kind


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_text_decoder_norm_post_ends_every_block_normalised(norm):
    case = make_case(seeds(1)[0], text_decoder_norm=norm)
    outputs = []
    block = case.model.text_decoder.blocks[-1]
    block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        block.mlp_norm.weight.fill_(1)
        block.mlp_norm.bias.zero_()
    loss_of(case, "t2t")
    normalised = torch.allclose(outputs[0].mean(-1), torch.zeros(4, 8), atol=1e-5)
    normalised &= torch.allclose(outputs[0].var(-1, unbiased=False), torch.ones(4, 8), atol=1e-3)
    assert normalised == (norm == "post")
    assert torch.isfinite(loss_of(case, "i2t2i"))


@pytest.mark.parametrize("sees", [True, False])
def test_image_decoder_sees_text(sees):
    case = make_case(seeds(1)[0], image_decoder_sees_text=sees, overwrite_kept_masked=False)
    encoded = encode(case, case.t2i_masking)
    changed = encoded._replace(other=torch.randn_like(encoded.other))
    same = torch.equal(*(image_logits(case, x, case.t2i_masking) for x in (encoded, changed)))
    assert same != sees
    assert len(case.model.image_decoder.positions) == TOKENS + WORDS * sees


def test_image_decoder_that_overwrites_everything_needs_the_text():
    with pytest.raises(ValueError, match="image_decoder_sees_text"):
        make_config(image_decoder_sees_text=False)


@pytest.mark.parametrize("overwrites", [True, False])
def test_overwrite_kept_masked(overwrites):
    case = make_case(seeds(1)[0], overwrite_kept_masked=overwrites)
    masking = draw_masking(torch.full((4,), 0.7), torch.rand(4, TOKENS), 8)
    encoded = encode(case, masking)
    changed = encoded._replace(image=moved(encoded.image, kept_masked(masking)))
    assert torch.equal(*(image_logits(case, x, masking) for x in (encoded, changed))) == overwrites


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_mask_ratio_per(per):
    config = make_config(mask_ratio_per=per)
    args = {"t2i": 64, "i2t": 64}, TOKENS, config.objective, torch.device("cpu")
    for masking in objectives.draw_maskings(Noise(seeds(1)[0], 0, "cpu"), *args).values():
        assert (len(set(masking.mask.sum(1).tolist())) == 1) == (per == "batch")
        assert len({tuple(row) for row in masking.kept.tolist()}) > 1


@pytest.mark.parametrize("task", ["t2i", "i2t_i2i", "i2t2i"])
def test_image_loss_mean_of_each_sample_first(task):
    seed = seeds(1)[0]
    case = make_case(seed, image_loss_mean="sample", i2t2i="half")
    alone = []
    for row in range(4):
        rows = slice(row, row + 1)
        cut = [type(x)(*(y[rows] for y in x)) for x in (case.text, case.t2i_masking, case.i2t_masking)]
        one = case._replace(image_ids=case.image_ids[rows], text_ids=case.text_ids[rows], text=cut[0],
                            t2i_masking=cut[1], i2t_masking=cut[2])  # fmt: skip
        alone.append(loss_of(one, task))
    torch.testing.assert_close(loss_of(case, task), torch.stack(alone).mean(), msg=lambda m: f"seed {seed}: {m}")
    weighted = torch.stack(alone) * (case.t2i_masking if task != "i2t_i2i" else case.i2t_masking).mask.sum(1)
    whole = make_case(seed, i2t2i="half")
    counts = (case.t2i_masking if task != "i2t_i2i" else case.i2t_masking).mask.sum()
    torch.testing.assert_close(loss_of(whole, task), weighted.sum() / counts)


def test_t2i_text_drop_prob():
    case = make_case(seeds(1)[0])
    assert objectives.drop_text(case.text, case.empty, None, 0.0) is case.text
    found = objectives.drop_text(case.text, case.empty, lambda *_: torch.tensor([[0.05], [0.3], [0.2999], [0.9]]), 0.3)
    for row, dropped in enumerate((True, False, True, False)):
        expected = case.empty if dropped else Text(case.text.features[row : row + 1], case.text.mask[row : row + 1])
        assert torch.equal(found.features[row], expected.features[0])
        assert torch.equal(found.mask[row], expected.mask[0])
    many = Text(*(x.repeat(500, *[1] * (x.ndim - 1)) for x in case.text))
    dropped = objectives.drop_text(many, case.empty, Noise(seeds(1)[0], 0, "cpu"), 0.1).mask.sum(1) == 1
    assert 120 < dropped.sum() < 290  # mean 200, standard deviation 13


PASSES = {  # objective -> (network, rows, training, gradient) of every call; the synthesis of the cycles comes first
    "t2i2t": [("encoder", 8, False, False), ("image_decoder", 8, False, False)] * 3
    + [("encoder", 4, True, False), ("image_decoder", 4, True, True), ("encoder", 4, True, True),
       ("text_decoder", 4, True, True)],
    "i2t2i": [("encoder", 4, False, False), ("encoder", 4, True, False), ("text_decoder", 4, True, True),
              ("encoder", 4, True, True), ("image_decoder", 4, True, True)],
}  # fmt: skip


def passes(case, task):
    """Every call of a network: (name, rows, was it training, was there a gradient)."""
    calls = []
    for name in ("encoder", "image_decoder", "text_decoder"):
        part = getattr(case.model, name)
        part.register_forward_pre_hook(
            lambda module, inputs, name=name: calls.append(
                (name, len(inputs[0]), module.training and module.blocks[0].training, torch.is_grad_enabled())
            )
        )
    loss_of(case, task)
    assert all(module.training for module in case.model.modules())
    return calls


@pytest.mark.parametrize("task", ["t2i2t", "i2t2i"])
def test_passes_of_the_cycles(task):
    assert passes(make_case(seeds(1)[0]), task) == PASSES[task]


def test_synth_cfg_and_synth_decode_steps():
    seed = seeds(1)[0]
    synthesis = [x for x in passes(make_case(seed, synth_cfg=False, synth_decode_steps=2), "t2i2t") if not x[2]]
    assert synthesis == [("encoder", 4, False, False), ("image_decoder", 4, False, False)] * 2


@pytest.mark.parametrize("guided", [True, False])
def test_the_cycle_synthesizes_as_a_person_would(monkeypatch, guided):
    case = make_case(seeds(1)[0], synth_cfg=guided, synth_decode_steps=4, guidance_scale=5.0)
    made = []
    generate = inference.generate
    monkeypatch.setattr(inference, "generate", lambda *a, **k: made.append(generate(*a, **k)) or made[-1])
    loss_of(case, "t2i2t")
    noise = lambda name, shape: case.noise(f"t2i2t/synthesis/{name}", shape)  # noqa: E731
    by_hand = [
        generate(case.model, case.text, case.empty, noise, case.config.decode, num_steps=4, guided=g)
        for g in (guided, not guided)
    ]
    assert torch.equal(made[0], by_hand[0])
    assert not torch.equal(made[0], by_hand[1])


@pytest.mark.parametrize("ratio_min", [0.25, 0.5])
def test_the_synthesis_drops_as_many_as_training(ratio_min):
    case, sizes = make_case(seeds(1)[0], synth_drop_masked=True, mask_ratio_min=ratio_min, num_decode_steps=2), []
    case.model.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[1].shape[1]))
    loss_of(case, "t2i2t")
    # 16, then 11 of the 16 tokens are masked: enough to drop at both steps.
    assert sizes[:2] == [16 - int(16 * ratio_min)] * 2


def test_dropout_is_off_in_the_synthesis_and_on_in_training():
    case = make_case(seeds(1)[0], dropout=0.3)
    pictures = [inference.generate(case.model, case.text, case.empty, case.noise, case.config.decode) for _ in "ab"]
    texts = [inference.caption_greedy(case.model, case.image_ids, case.empty) for _ in "ab"]
    assert torch.equal(*pictures)
    assert torch.equal(*texts)
    for task in ("t2i", "i2t", "t2t", "t2i2t", "i2t2i"):
        assert not torch.equal(loss_of(case, task), loss_of(case, task)), task
