"""The two pipelines against straight-line code, teacher forcing, and themselves one sample at a time."""

import math

import numpy as np
import pytest
import torch

from itit import decoding, inference, masking
from itit.models import Text
from itit.models.layers import set_compute_dtype
from itit.noise import Noise
from itit.program import Eager, running
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

BATCH = 3


class Rows:
    """Noise that gives the row of a larger batch's."""

    def __init__(self, noise, row, batch):
        self.noise, self.row, self.batch = noise, row, batch

    def __call__(self, name, shape):
        return self.noise(name, (self.batch, *shape[1:]))[self.row : self.row + 1]


def prepare(**flags):
    config = small.small(**flags)
    text, empty = small.random_text(BATCH, config), small.empty_text(config)
    return config, small.small_model(**flags), text, empty


def conditional_logits(model, ids, text):
    """Nothing dropped, [MASK] at the unknown."""
    unknown = ids == 40
    everything = masking.Masking(unknown, torch.arange(16).repeat(len(ids), 1))
    embeds = model.encoder.token_embed(ids)  # row 40 is [MASK]
    return model.image_logits(model.decode_image(model.encode(embeds, everything, text), everything))


@pytest.mark.parametrize(
    "flags", [{}, {"guidance_schedule": "constant", "choice_anneal": "constant", "choice_temperature": 3.0}]
)
@pytest.mark.parametrize("guided", [True, False])
def test_generate_equals_straight_line_code(flags, guided):
    config, model, text, empty = prepare(**flags)
    d, noise, asked = config.decode, small.Recorded(), []
    empty = Text(*(x.repeat(BATCH, *[1] * (x.ndim - 1)) for x in empty))

    def logits_fn(ids, step, noise):
        asked.append(step)
        logits = conditional_logits(model, ids, text)
        if guided:
            scale = d.guidance_scale * ((step + 1) / 6 if d.guidance_schedule == "linear" else 1)
            logits = (1 + scale) * logits - scale * conditional_logits(model, ids, empty)
        return logits

    with torch.no_grad():
        expected = decoding.parallel_decode([logits_fn] * 6, torch.full((BATCH, 16), 40), noise, d, 40)
    single = Text(*(x[:1] for x in empty))
    assert torch.equal(inference.generate(model, text, single, noise, d, guided=guided), expected)
    assert asked == list(range(6)) and expected.max() < 40
    if guided:
        unguided = inference.generate(model, text, single, noise, small.small(**flags, guidance_scale=0.0).decode)
        assert torch.equal(unguided, inference.generate(model, text, single, noise, d, guided=False))


def test_generate_does_not_see_the_other_samples():
    config, model, text, empty = prepare()
    noise = small.Recorded()
    together = inference.generate(model, text, empty, noise, config.decode)
    captions = inference.caption_greedy(model, together, empty)
    beams = decoding.best(inference.caption_beam(model, together, empty, config.decode))
    for row in range(BATCH):
        alone = Text(*(x[row : row + 1] for x in text))
        ids = inference.generate(model, alone, empty, Rows(noise, row, BATCH), config.decode)
        assert torch.equal(ids, together[row : row + 1])
        assert torch.equal(inference.caption_greedy(model, ids, empty), captions[row : row + 1])
        assert torch.equal(inference.caption_beam(model, ids, empty, config.decode).texts[:, 0], beams[row : row + 1])


def test_generate_goes_on_from_known_tokens():
    config, model, text, empty = prepare()
    ids = torch.randint(40, (BATCH, 16))
    known = torch.rand(BATCH, 16) < torch.tensor([[0.0], [0.5], [1.1]])
    start = ids.masked_fill(~known, 40)
    out = inference.generate(model, text, empty, small.Recorded(), config.decode, image_ids=start)
    assert torch.equal(out[known], ids[known]) and out.max() < 40
    again = inference.generate(model, text, empty, small.Recorded(), config.decode, num_steps=1)
    assert again.shape == (BATCH, 16) and again.max() < 40


def sizes_seen(model, call):
    """How many image tokens the encoder saw in each pass."""
    seen = []
    handle = model.encoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1].shape[1]))
    out = call()
    handle.remove()
    return out, seen


@pytest.mark.parametrize("num_steps", [1, 6, 14, 16])
@pytest.mark.parametrize("ratio_min", [0.3, 0.5, 0.7])
def test_dropping_masked_tokens(num_steps, ratio_min):
    """With no block in the encoder no token sees another, so that nothing changes; with blocks only sizes do."""
    flags = dict(synth_drop_masked=True, num_decode_steps=num_steps, mask_ratio_min=ratio_min)
    for depth in (0, 2):
        config, model, text, empty = prepare(**flags, depth=depth)
        noise = small.Recorded()
        dropped = inference.drops(model, config.objective, config.decode)
        assert dropped == math.floor(16 * ratio_min)
        out, seen = sizes_seen(
            model,
            lambda: inference.generate(model, text, empty, noise, config.decode, dropped=dropped),  # noqa: B023
        )
        counts = masking.decode_schedule(16, num_steps)
        assert seen == [16 - dropped if count >= dropped else 16 for count in counts]
        assert out.max() < 40
        assert inference.drops(model, config.objective, small.small().decode) == 0
        whole = small.small(num_decode_steps=num_steps).decode
        expected, seen = sizes_seen(model, lambda: inference.generate(model, text, empty, noise, whole))  # noqa: B023
        assert seen == [16] * num_steps
        if depth == 0:
            assert torch.equal(out, expected)


def kept_by_hand(ids, noise, dropped):
    """What is kept of each sample: all slots but the `dropped` masked ones of the lowest noise, in order."""
    kept = []
    for row, numbers in zip(ids.tolist(), noise.tolist(), strict=True):
        masked = sorted((number, slot) for slot, number in enumerate(numbers) if row[slot] == 40)
        kept.append(sorted(set(range(16)) - {slot for _, slot in masked[:dropped]}))
    return kept


@pytest.mark.parametrize("guided", [True, False])
def test_each_step_drops_masked_tokens_at_random(guided):
    """The encoder is shown what a draw of its own leaves, the same with guidance's two rows of a sample."""
    config, model, text, empty = prepare(synth_drop_masked=True)
    noise, kept, states = small.Recorded(), [], [torch.full((BATCH, 16), 40)]
    encode = model.encode
    model.encode = lambda embeds, masking, text: kept.append(masking) or encode(embeds, masking, text)
    inference.generate(model, text, empty, noise, config.decode, guided=guided, dropped=8, watch=states.append)
    dropping = [count >= 8 for count in masking.decode_schedule(16, 6)]
    assert {name for name in noise.draws if "drop" in name} == {f"drop{s}" for s in range(6) if dropping[s]}
    for step, (state, found) in enumerate(zip(states, kept, strict=False)):
        expected = kept_by_hand(state, noise.draws[f"drop{step}"], 8) if dropping[step] else [list(range(16))] * BATCH
        rows = [row for row in range(BATCH) for _ in range(1 + guided)]
        assert found.kept.tolist() == [expected[row] for row in rows]
        assert torch.equal(found.mask, (state == 40)[rows])


def test_a_picture_made_with_dropping_depends_on_its_number_alone():
    config, model, text, empty = prepare(synth_drop_masked=True)

    def made(rows):
        noise = Noise(3, 0, "cpu", "samples", rows)
        return inference.generate(model, Text(*(x[rows] for x in text)), empty, noise, config.decode, dropped=8)

    assert torch.equal(made([0, 1, 2])[[2, 0]], made([2, 0]))


def test_dropping_never_drops_a_known_token():
    for num_steps in range(1, 17):
        config, model, text, empty = prepare(synth_drop_masked=True, num_decode_steps=num_steps)
        calls = []
        model.encoder.register_forward_hook(lambda module, inputs, output, calls=calls: calls.append(inputs[0]))
        dropped = inference.drops(model, config.objective, config.decode)
        inference.generate(model, text, empty, small.Recorded(), config.decode, guided=False, dropped=dropped)
        mask_row = model.encoder.token_embed.weight[40]
        visible = [(embeds != mask_row).any(-1).sum(1).tolist() for embeds in calls]
        assert visible == [[16 - count] * BATCH for count in masking.decode_schedule(16, num_steps)]


KINDS = [(memory, norm) for memory in ("visible", "kept", "all") for norm in ("pre", "post")]


@pytest.mark.parametrize(("memory", "norm"), KINDS)
def test_greedy_equals_the_argmax_of_teacher_forcing(memory, norm):
    config, model, _, empty = prepare(text_memory=memory, text_decoder_norm=norm)
    with torch.no_grad():
        model.text_decoder.head.bias[1] += 2.0  # some texts end
    image_ids = torch.randint(40, (12, 16))
    ids = inference.caption_greedy(model, image_ids, empty)
    nothing_masked = masking.Masking(torch.zeros(12, 16, dtype=torch.bool), torch.arange(16).repeat(12, 1))
    encoded = model.encode(model.encoder.token_embed(image_ids), nothing_masked, empty.expand(12))
    with torch.no_grad():
        logits = model.text_logits(ids, encoded, nothing_masked)
    logits[..., [0, 47]] = -torch.inf
    for row, best in zip(ids.tolist(), logits.argmax(-1).tolist(), strict=True):
        length = row.index(1) + 1 if 1 in row else 8
        assert row == best[:length] + [0] * (8 - length)


def test_beam_of_one_equals_greedy_and_four_is_likelier():
    wide, better = small.small(beam_size=4, length_penalty=0.0).decode, 0
    for _ in range(10):  # there are models of which the likeliest word always begins the likeliest text
        config, model, _, empty = prepare(beam_size=1)
        image_ids = torch.randint(40, (24, 16))
        greedy = inference.caption_greedy(model, image_ids, empty)
        assert torch.equal(decoding.best(inference.caption_beam(model, image_ids, empty, config.decode)), greedy)
        beam = decoding.best(inference.caption_beam(model, image_ids, empty, wide))
        nothing_masked = masking.keep_all(torch.zeros(24, 16, dtype=torch.bool))
        scores = []
        with torch.no_grad():
            encoded = model.encode(model.embed(image_ids, nothing_masked), nothing_masked, empty.expand(24))
            for ids in (greedy, beam):
                logits = decoding.suppress(model.text_logits(ids, encoded, nothing_masked), [0, 47])
                log_probs = logits.log_softmax(-1).gather(2, ids.clamp(min=1)[..., None])[..., 0]
                scores.append((log_probs * (ids != 0)).sum(1))
        assert scores[1].sum() > scores[0].sum() - 1e-4
        better += not torch.equal(greedy, beam)
    assert better > 0


@pytest.mark.parametrize("beams", [0, 1, 4])
def test_no_pad_bos_or_word_after_the_end(beams):
    config, model, _, empty = prepare(beam_size=max(beams, 1))
    image_ids = torch.randint(40, (6, 16))

    def caption():
        if beams == 0:
            return inference.caption_greedy(model, image_ids, empty).numpy()
        return decoding.best(inference.caption_beam(model, image_ids, empty, config.decode)).numpy()

    with torch.no_grad():
        model.text_decoder.head.bias[[0, 47]] = 1e4
    for row in caption():
        words = row[: np.argmax(row == 1)] if 1 in row else row
        assert not np.isin(words, [0, 1, 47]).any()
        assert not row[len(words) + 1 :].any()
    with torch.no_grad():
        model.text_decoder.head.bias[1] = -1e4
    assert not np.isin(caption(), [0, 1, 47]).any()  # the full length without an end
    with torch.no_grad():
        model.text_decoder.head.bias[1] = 1e4
    assert (caption() == [1, 0, 0, 0, 0, 0, 0, 0]).all()


@pytest.mark.parametrize("training", [True, False])
def test_mode_random_state_and_gradients_stay(training):
    config, model, text, empty = prepare()
    model.train(training)
    state = torch.get_rng_state()
    noise = Noise(1, 2, "cpu")
    first = inference.generate(model, text, empty, noise, config.decode)
    captions = inference.caption_greedy(model, first, empty)
    beams = decoding.best(inference.caption_beam(model, first, empty, config.decode))
    assert model.training == training and all(part.training == training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() and all(p.grad is None for p in model.parameters())
    # No dropout in it: again the same.
    assert torch.equal(inference.generate(model, text, empty, noise, config.decode), first)
    assert torch.equal(inference.caption_greedy(model, first, empty), captions)
    assert torch.equal(decoding.best(inference.caption_beam(model, first, empty, config.decode)), beams)


def test_mode_is_restored_after_an_error():
    model = small.small_model().train()
    with pytest.raises(RuntimeError, match="stop"), inference.inference_mode(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert model.training and torch.is_grad_enabled()


def test_weights_are_cast_once_for_all_steps():
    config, model, text, empty = prepare()
    set_compute_dtype(model, torch.bfloat16)
    own, ids = {name: p.clone() for name, p in model.named_parameters()}, torch.randint(40, (BATCH, 16))
    called = []

    class Noting(Eager):
        def __call__(self, function, *args, updates=()):
            called.append(function.__name__)
            return function(*args)

    with running(Noting()), inference.weights_cast(model):
        names = set(model.casts)
        captions = inference.caption_greedy(model, ids, empty)
    assert called.count("_cast_weights") == 1
    assert {"encoder.blocks.0.mlp.up.weight", "text_decoder.memory_in.bias", "encoder.token_embed.weight"} < names
    assert "text_decoder.token_embed.weight" not in names
    assert not any("norm" in name or name.endswith("positions") for name in names)
    assert all(torch.equal(p, own[name]) and p.dtype == torch.float32 for name, p in model.named_parameters())
    assert not model.casts and not any(getattr(part, "casts", None) for part in model.modules())
    assert torch.equal(inference.caption_greedy(model, ids, empty), captions)  # the next ones anew


def test_every_draw_of_a_picture_has_a_name_of_its_own():
    config, model, text, empty = prepare()
    noise = small.Recorded()
    inference.generate(model, text, empty, noise, config.decode)
    assert set(noise.draws) == {f"{name}{s}" for name in ("token", "choice") for s in range(6)}
    inference.generate(model, text, empty, noise, config.decode, dropped=2)
    assert set(noise.draws) == {f"{name}{s}" for name in ("token", "choice", "drop") for s in range(6)}
    draws = [Noise(3, 4, "cpu")(name, (50,)) for name in noise.draws]
    assert all(not torch.isclose(a, b).any() for i, a in enumerate(draws) for b in draws[:i])
