"""Samples: what a person looks at is what the pipelines give, drawn where it should be."""

import numpy as np
import pytest
import torch

from itit import inference, samples
from itit.backends.local import Local
from itit.config import VqganConfig, replace
from itit.models import VQGAN, encode_text
from itit.noise import Noise
from itit.objectives import empty_ids
from itit.train_step import State
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


class Words:
    """Stands for a Detokenizer: says the ids."""

    def decode(self, ids):
        return [" ".join(map(str, row)) for row in ids.tolist()]


def prepare(batch_size=64):
    config, t5 = small.small(), small.small_t5()
    vqgan = VQGAN(VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                              codebook_size=40))  # fmt: skip
    nothing = encode_text(t5, empty_ids(8, "cpu"))
    state = State(small.small_model(), t5, vqgan, nothing, None, None)
    batch = {"image_ids": torch.randint(40, (5, 16)), "text_ids": small.random_texts(5, config)}
    return config, state, samples.Translator(state, config, Local("cpu"), 7, batch_size), batch


def test_pictures_captions_and_pixels_are_the_pipelines():
    config, state, translator, batch = prepare(batch_size=2)
    text, empty = encode_text(state.t5, batch["text_ids"]), state.empty_text()
    expected = [
        inference.generate(state.model, type(text)(*(x[i : i + 2] for x in text)), empty,
                           Noise(config.train.seed, 7, "cpu", "samples/mine", list(range(5))[i : i + 2]), config.decode)
        for i in range(0, 5, 2)
    ]  # fmt: skip
    pictures = translator.pictures(batch["text_ids"], "mine")
    assert torch.equal(pictures, torch.cat(expected))
    assert not torch.equal(translator.pictures(batch["text_ids"], "other"), pictures)
    beam = inference.caption_beam(state.model, pictures, empty, config.decode)
    assert torch.equal(translator.captions(pictures), beam.texts[:, 0])
    found = translator.candidates(pictures)
    assert torch.equal(found.texts, beam.texts) and torch.allclose(found.scores, beam.scores)
    greedy = inference.caption_greedy(state.model, pictures, empty)
    assert torch.equal(translator.captions(pictures, greedy=True), greedy)
    pixels = translator.pixels(pictures)
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 16, 16, 3)
    expected = [state.vqgan.to_pixels(pictures[i : i + 2]) for i in range(0, 5, 2)]  # batches of 2 round alike
    assert np.array_equal(pixels, torch.cat(expected).numpy())


@pytest.mark.parametrize("ratio_min", [0.5, 0.75])
def test_pictures_are_made_with_as_many_tokens_dropped_as_in_training(ratio_min):
    config, state, _, batch = prepare()
    config = replace(config, synth_drop_masked=True, mask_ratio_min=ratio_min)
    sizes = []
    state.model.encoder.register_forward_hook(lambda module, inputs, output: sizes.append(inputs[1].shape[1]))
    samples.Translator(state, config, Local("cpu"), 0).pictures(batch["text_ids"])
    assert sizes[0] == 16 - 16 * ratio_min and sizes[-1] == 16


def test_turns_alternate():
    _, _, translator, batch = prepare()
    from_text = list(translator.turns(batch["text_ids"], "text", 3))
    from_image = list(translator.turns(batch["image_ids"], "image", 3, rows=range(3, 8)))
    assert [x.shape[1] for x in from_text] == [8, 16, 8, 16]
    assert [x.shape[1] for x in from_image] == [16, 8, 16, 8]
    assert torch.equal(from_text[2], translator.captions(from_text[1]))
    assert torch.equal(from_image[1], translator.captions(batch["image_ids"]))
    assert torch.equal(from_text[3], translator.pictures(from_text[2], "turn2"))
    assert torch.equal(from_image[2], translator.pictures(from_image[1], "turn1", range(3, 8)))


def test_a_picture_depends_on_its_number_and_not_on_what_is_beside_it():
    _, _, translator, batch = prepare(batch_size=3)
    ids = batch["text_ids"]
    whole = translator.pictures(ids)
    translator.batch_size = 2
    assert torch.equal(translator.pictures(ids), whole)
    some = [4, 0, 3]
    assert torch.equal(translator.pictures(ids[some], rows=some), whole[some])
    assert not torch.equal(translator.pictures(ids[some], rows=[1, 2, 5]), whole[some])


def test_steps_can_be_watched_and_unknown_tokens_are_grey():
    config, state, translator, batch = prepare(batch_size=3)
    seen = []
    found = translator.pictures(batch["text_ids"], watch=seen.append)
    assert torch.equal(found, translator.pictures(batch["text_ids"]))
    assert [len(ids) for ids in seen] == [3] * config.decode.num_decode_steps + [2] * config.decode.num_decode_steps
    first = seen[0]
    masked = (first == state.model.mask_token_id).view(3, 4, 4).repeat_interleave(4, 1).repeat_interleave(4, 2).numpy()
    pixels, code = translator.pixels(first), state.vqgan.to_pixels(first.masked_fill(first == 40, 0)).numpy()
    assert masked.any() and not masked.all()
    assert (pixels[masked] == 160).all() and np.array_equal(pixels[~masked], code[~masked])


def test_collect_draws_the_four_sheets(monkeypatch):
    _, _, translator, batch = prepare()
    drawn, draw = [], samples.draw
    monkeypatch.setattr(samples, "draw", lambda sections: drawn.append(sections) or draw(sections))
    pages = samples.collect(translator, batch, Words(), num_turns=3)
    assert list(pages) == ["prompt_to_picture", "picture_to_caption", "cycle_from_text", "cycle_from_image"]
    assert all(page.dtype == np.uint8 and page.shape[2] == 3 for page in pages.values())
    made = translator.pixels(translator.pictures(batch["text_ids"])), Words().decode(batch["text_ids"])
    given = translator.pixels(batch["image_ids"]), Words().decode(translator.captions(batch["image_ids"]))
    for (section,), (pixels, texts) in zip(drawn, (made, given), strict=False):
        assert [len(row) for row in section.rows] == [4, 1]
        panels = [panel for row in section.rows for panel in row]
        assert all(np.array_equal(panel.picture, picture) for panel, picture in zip(panels, pixels, strict=True))
        assert [panel.text for panel in panels] == texts
    assert [(section.joined, len(section.rows), len(section.rows[0])) for (section,) in drawn[2:]] == [(True, 5, 4)] * 2


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_row_of_a_cycle_holds_its_stages(kind):
    _, _, translator, batch = prepare()
    words, ids = Words().decode, batch[f"{kind}_ids"]
    stages = list(translator.turns(ids, kind, 3))
    section = samples.cycles(translator, words, ids, kind, 3)
    assert section.joined and len(section.rows) == 5
    for b, row in enumerate(section.rows):
        for panel, stage in zip(row, stages, strict=True):
            if stage.shape[1] == 8:
                assert panel.picture is None and panel.text == words(stage[b : b + 1])[0]
            else:
                assert panel.text == "" and np.array_equal(panel.picture, translator.pixels(stage)[b])
