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


def cells(page, rows, columns):
    """The pictures of a sheet, cut out by hand."""
    return [[page[28 + i * 206 : 28 + i * 206 + 144, 8 + j * 152 : 8 + j * 152 + 144] for j in range(columns)]
            for i in range(rows)]  # fmt: skip


def enlarged(pixels):
    return pixels.repeat(9, 0).repeat(9, 1)


def test_sheet_shows_every_picture_and_its_text_beneath():
    pixels = np.random.default_rng().integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    rows = [[samples.Panel(pixels[0], "one"), samples.Panel(pixels[1], "")], [samples.Panel(None, "word " * 60)],
            [samples.Panel(pixels[2], "three")]]  # fmt: skip
    page = samples.sheet("title", rows)
    found = cells(page, 3, 2)
    for cell, picture in ((found[0][0], pixels[0]), (found[0][1], pixels[1]), (found[2][0], pixels[2])):
        assert np.array_equal(cell, enlarged(picture))
    assert (found[1][0] == 255).all() and (found[1][1] == 255).all()
    texts = [page[28 + i * 206 + 144 : 28 + (i + 1) * 206, 8 + j * 152 : 8 + (j + 1) * 152] for i, j in
             ((0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert [bool((text < 128).any()) for text in texts] == [True, False, True]
    assert (page[:28] < 128).any()


def test_large_pictures_are_averaged_and_small_ones_enlarged():
    pixels = np.random.default_rng().integers(256, size=(288, 288, 3), dtype=np.uint8)
    mean = pixels.reshape(144, 2, 144, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(samples.resized(pixels, 144)) - mean).max() <= 1
    assert np.array_equal(np.asarray(samples.resized(pixels[:16, :16], 144)), enlarged(pixels[:16, :16]))


def test_collect_draws_the_four_sheets():
    _, _, translator, batch = prepare()
    sheets = samples.collect(translator, batch, Words(), num_turns=3)
    assert set(sheets) == {"prompt_to_picture", "picture_to_caption", "cycle_from_text", "cycle_from_image"}
    assert all(page.dtype == np.uint8 and page.shape[2] == 3 for page in sheets.values())
    made = translator.pixels(translator.pictures(batch["text_ids"]))
    given = translator.pixels(batch["image_ids"])
    for name, pixels in (("prompt_to_picture", made), ("picture_to_caption", given)):
        found = cells(sheets[name], 2, 4)
        for i in range(5):
            assert np.array_equal(found[i // 4][i % 4], enlarged(pixels[i])), name


def test_rows_of_a_cycle():
    _, _, translator, batch = prepare()
    words = Words().decode
    for kind in ("text", "image"):
        ids = batch[f"{kind}_ids"]
        stages = list(translator.turns(ids, kind, 3))
        rows = samples.cycle_rows(translator, words, ids, kind, 3)
        assert len(rows) == 5
        for b, row in enumerate(rows):
            shown = []  # in the order of reading: picture, then text, of each panel
            for panel in row:
                shown += [None if panel.pixels is None else panel.pixels.tobytes(), panel.text or None]
            expected = [
                words(s[b : b + 1])[0] if s.shape[1] == 8 else translator.pixels(s)[b].tobytes() for s in stages
            ]
            assert [x for x in shown if x is not None] == expected
