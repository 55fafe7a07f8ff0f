"""A model to use computes what the run's own translator does; it needs neither torch_xla nor TensorFlow."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import itit
from itit import samples
from itit.backends.local import Local
from itit.checkpoint import store, tensorfile, weights, weightsdir
from itit.config import replace
from itit.data.text import Tokenizer
from itit.models.layers import set_compute_dtype
from itit.pretrained import ITIT
from itit.training import runs
from itit.training.state import load_state, make_state
from tests.helpers import finished_run
from tests.helpers.common import ROOT
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import export
from tools.train_sentencepiece import train

PROMPTS = ["a small red circle in the top left", "a large blue cross", "", "a green square " * 40, "数 é"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(Config of a small finished run, its export, pictures uint8 [5, 64, 64, 3])."""
    folder = tmp_path_factory.mktemp("run")
    config, pairs = finished_run.of_scenes(folder)
    config = runs.settings(config.train.workdir)
    found = store.restore(config.train.workdir)
    export.export(config, found, str(folder / "exported"), None, 2**30, None)
    return config, str(folder / "exported"), np.stack([picture for picture, _ in pairs[:5]])


def live(config, seed):
    """The translator that the run's reports use, and its state with averaged weights."""
    backend = Local("cpu")
    state = make_state(config, backend)
    store.restore(config.train.workdir, lambda _, reader, meta: load_state(state, reader, meta, "run", backend))
    return state, samples.Translator(state, replace(config, seed=seed), backend, step=0)


def test_pictures_equal_the_runs_own(run):
    config, folder, _ = run
    model, seed = ITIT.from_pretrained(folder, device="cpu"), int(torch.randint(1000, ()))
    state, translator = live(config, seed)
    translator.batch_size = 2
    ids = torch.from_numpy(Tokenizer(config.data.vocabulary).encode(PROMPTS, config.model.num_text_tokens))
    with state.averaged():
        expected = translator.pixels(translator.pictures(ids))
    found = model.generate(PROMPTS, seed=seed, batch_size=2, progress=False)
    assert all(image.size == (64, 64) and image.mode == "RGB" for image in found)
    assert np.array_equal(np.stack(found), expected)
    some = model.generate([PROMPTS[3], PROMPTS[1]], seed=seed, numbers=[3, 1], progress=False)
    assert np.array_equal(np.stack(some), expected[[3, 1]])
    again = model.generate(PROMPTS, seed=seed + 1, batch_size=2, progress=False)
    assert not np.array_equal(np.stack(found), np.stack(again))
    assert np.array_equal(np.stack(model.generate(PROMPTS[0], seed)), np.stack(model.generate(PROMPTS[:1], seed)))


def test_the_settings_of_decoding_reach_it(run, monkeypatch):
    config, folder, pictures = run
    used, model = [], ITIT.from_pretrained(folder, device="cpu")

    class Spied(samples.Translator):
        def __init__(self, state, config, *rest):
            used.append(config)
            super().__init__(state, config, *rest)

    monkeypatch.setattr("itit.pretrained.Translator", Spied)
    model.generate("a", seed=3, num_decode_steps=5, guidance_scale=0.5)
    model.caption(Image.fromarray(pictures[0]), beam_size=3)
    model.generate("a")
    decode = config.decode
    changed = dataclasses.replace(decode, num_decode_steps=5, guidance_scale=0.5)
    assert [c.decode for c in used] == [changed, dataclasses.replace(decode, beam_size=3), decode]
    assert [c.train.seed for c in used] == [3, 0, 0]
    assert all((c.model, c.objective) == (config.model, config.objective) for c in used)


def test_captions_equal_the_runs_own(run, tmp_path, monkeypatch):
    config, folder, pictures = run
    model = ITIT.from_pretrained(folder, device="cpu")
    state, translator = live(config, 0)
    translator.config = replace(config, beam_size=4)
    with state.averaged():
        ids = translator.captions(state.vqgan.tokenize(torch.from_numpy(pictures)))
    expected = Tokenizer(config.data.vocabulary).decode(ids.numpy())
    images = [Image.fromarray(picture) for picture in pictures]
    images[1].save(tmp_path / "1.png")
    images[2].save(tmp_path / "2.png")
    images[1:3] = [tmp_path / "1.png", str(tmp_path / "2.png")]
    # Random networks may say the same of all pictures; that each was looked at, in order, is seen here.
    seen, tokenize = [], model.state.vqgan.tokenize
    monkeypatch.setattr(model.state.vqgan, "tokenize", lambda pixels: seen.append(pixels.numpy()) or tokenize(pixels))
    assert model.caption(images, beam_size=4, batch_size=2, progress=False) == expected
    assert [len(part) for part in seen] == [2, 2, 1] and np.array_equal(np.concatenate(seen), pictures)


def test_candidates_are_those_of_the_beams(run):
    config, folder, pictures = run
    model = ITIT.from_pretrained(folder, device="cpu")
    images = [Image.fromarray(picture) for picture in pictures]
    found = model.caption(images, beam_size=3, candidates=True, progress=False)
    translator = samples.Translator(model.state, replace(config, beam_size=3), Local("cpu"), 0)
    expected = translator.candidates(model.state.vqgan.tokenize(torch.from_numpy(pictures)))
    for row, texts, scores in zip(found, expected.texts, expected.scores.tolist(), strict=True):
        texts = model.tokenizer.decode(texts.numpy())
        assert row == [(text, score) for text, score in zip(texts, scores, strict=True) if score > -np.inf]
    assert [row[0][0] for row in found] == model.caption(images, beam_size=3, progress=False)


def test_a_run_gives_what_its_export_gives(run):
    config, folder, pictures = run
    model, exported = ITIT.from_run(config.train.workdir, device="cpu"), ITIT.from_pretrained(folder, device="cpu")
    assert model.record == {"step": finished_run.STEP, "averaged": True, "compute_dtype": "fp32"}
    assert np.array_equal(np.stack(model.generate(PROMPTS, 5)), np.stack(exported.generate(PROMPTS, 5)))
    raw = ITIT.from_run(config.train.workdir, device="cpu", averaged=False, step=finished_run.STEP)
    tensors = runs.restore(config.train.workdir)[1]
    assert {name.split("/")[0] for name in tensors} == {"model", "ema"}  # nothing of the optimizer is read
    assert finished_run.same_weights(raw.state.model, tensors, "model")
    assert finished_run.same_weights(model.state.model, tensors, "ema")
    assert "no whole checkpoint of step 3" in said(ITIT.from_run, config.train.workdir, step=3)
    assert "no run, but an export: --model=" in said(ITIT.from_run, folder)


def test_cycles_are_the_translators(run, tmp_path, monkeypatch):
    config, folder, pictures = run
    model, watched = ITIT.from_pretrained(folder, device="cpu"), []
    stages = model.cycle(PROMPTS[:2], 3, seed=4, num_decode_steps=3, watch=watched.append)
    assert watched == stages and stages[0] == PROMPTS[:2]
    changed = replace(config, seed=4, num_decode_steps=3)
    translator = samples.Translator(model.state, changed, Local("cpu"), 0)
    ids = torch.from_numpy(model.tokenizer.encode(PROMPTS[:2], config.model.num_text_tokens))
    expected = list(translator.turns(ids, "text", 3))
    assert np.array_equal(np.stack(stages[1]), translator.pixels(expected[1]))
    assert stages[2] == model.tokenizer.decode(expected[2].numpy())
    assert np.array_equal(np.stack(stages[3]), translator.pixels(expected[3]))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pictures[0]).save("x.PNG")
    assert "start='x.PNG': a text, and the name of a picture" in said(model.cycle, "x.PNG", 1)
    (first,), (text,) = model.cycle(Image.fromarray(pictures[0]), 1)
    ids = model.state.vqgan.tokenize(torch.from_numpy(pictures[:1]))
    assert np.array_equal(np.asarray(first), translator.pixels(ids)[0])
    assert text == model.caption(Image.fromarray(pictures[0]))[0]
    some = model.cycle([Image.fromarray(pictures[1])], 2, numbers=[1], num_decode_steps=3)
    both = model.cycle([Image.fromarray(p) for p in pictures[:2]], 2, num_decode_steps=3)
    # Another batch may round pixels otherwise.
    assert np.abs(np.asarray(some[2][0], int) - np.asarray(both[2][1], int)).max() <= 1
    assert "num_turns=0" in said(model.cycle, "a", 0)
    assert "1 numbers for 2 samples" in said(model.cycle, ["a", "b"], 1, numbers=[1])


def test_the_steps_of_a_picture_can_be_watched(run):
    config, folder, _ = run
    model, seen = ITIT.from_pretrained(folder, device="cpu"), []
    (picture,) = model.generate("a", num_decode_steps=4, watch=seen.append)
    assert [pixels.shape for pixels in seen] == [(1, 64, 64, 3)] * 4
    grey = [(pixels == 160).all(-1).sum() for pixels in seen]
    assert grey == sorted(grey, reverse=True) and grey[0] > grey[-1]
    assert np.array_equal(seen[-1][0], np.asarray(picture))


def test_bars_are_shown_where_wanted(run, capsys):
    model = ITIT.from_pretrained(run[1], device="cpu")
    model.generate(["a"], progress=False)
    assert capsys.readouterr().err == ""
    model.generate(["a", "b"])
    assert "generating" in capsys.readouterr().err


def test_neither_torch_xla_nor_tensorflow_is_needed(run, tmp_path):
    config, folder, pictures = run
    shutil.move(shutil.copytree(folder, tmp_path / "copy"), tmp_path / "elsewhere")
    code = f"""
import sys
import numpy as np

class Blocked:
    names = {{"torch_xla", "tensorflow", "tensorflow_text", "scipy", "matplotlib", "tensorboard"}}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Blocked())
import itit
import itit.models
print(sum(p.numel() for p in itit.models.load({str(tmp_path / "elsewhere")!r}).parameters()))
model = itit.ITIT.from_pretrained({str(tmp_path / "elsewhere")!r}, device="cpu")
np.save({str(tmp_path / "made.npy")!r}, np.stack(model.generate({PROMPTS!r}, seed=5)))
print(model.caption([{str(tmp_path / "shown.png")!r}])[0])
assert "torch._dynamo" not in sys.modules, "torch's compiler takes seconds to load, and nothing here is compiled"
"""
    Image.fromarray(pictures[0]).save(tmp_path / "shown.png")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = ITIT.from_pretrained(folder, device="cpu")
    assert np.array_equal(np.load(tmp_path / "made.npy"), np.stack(model.generate(PROMPTS, seed=5)))
    count, caption = done.stdout.split("\n")[:2]
    assert int(count) == sum(p.numel() for p in model.state.model.parameters())
    assert [caption] == model.caption([Image.fromarray(pictures[0])])


def test_bf16_is_taken_up(run):
    model = ITIT.from_pretrained(run[1], device="cpu", dtype="bf16")
    assert model.state.t5.token_embed.weight.dtype == torch.bfloat16
    state, _ = live(run[0], 0)
    set_compute_dtype(state.model, torch.bfloat16)
    for ours, theirs in zip(model.state.model.modules(), state.model.modules(), strict=True):
        assert getattr(ours, "compute_dtype", None) == getattr(theirs, "compute_dtype", None)


def said(function, *args, **kwargs):
    with pytest.raises(ValueError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_one_line(run, tmp_path):
    config, folder, pictures = run
    model, picture = ITIT.from_pretrained(folder, device="cpu"), Image.fromarray(pictures[0])
    assert "no prompts" in said(model.generate, [])
    assert "prompt 1 is a int: must be a text" in said(model.generate, ["a", 3])
    assert "prompt 1: no text: half a character, '\\ud834', at 2" in said(model.generate, ["\U0001d11e", "a \ud834"])
    assert "'num_steps'; did you mean 'num_decode_steps'?" in said(model.generate, "a", num_steps=4)
    assert "'beams'; did you mean 'beam_size'?" in said(model.caption, picture, beams=4)
    assert "unknown setting 'learning_rate'" in said(model.cycle, ["a"], 1, learning_rate=4)
    assert "--num_decode_steps=0: must be in [1, " in said(model.generate, "a", num_decode_steps=0)
    assert "batch_size=0: must be at least 1" in said(model.generate, "a", batch_size=0)
    assert "no images" in said(model.caption, [])
    assert "image 1 is a float: must be a PIL image or a path" in said(model.caption, [picture, 1.5])
    assert "image 0: " in said(model.caption, str(tmp_path / "absent.png"))
    (tmp_path / "text.png").write_text("no picture")
    assert "image 1: not a picture" in said(model.caption, [picture, tmp_path / "text.png"])
    assert "--beam_size=0" in said(model.caption, picture, beam_size=0)
    assert "dtype='fp16': choose one of bf16, fp32" in said(ITIT.from_pretrained, folder, dtype="fp16")
    assert "no model.safetensors in it" in said(ITIT.from_pretrained, str(tmp_path))
    with pytest.raises(AttributeError, match="has no attribute 'Itit'"):
        _ = itit.Itit


def test_a_folder_that_is_not_there_is_named_where_the_hub_cannot_be_asked(monkeypatch):
    """Two words with a slash between may be a folder, mistyped, as well as OWNER/NAME."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "itit.checkpoint.hub", raising=False)
    monkeypatch.delattr("itit.checkpoint.hub", raising=False)
    with pytest.raises(ValueError, match=r"^runs/modle: no such folder; for a name on the Hub, .* huggingface_hub"):
        ITIT.from_pretrained("runs/modle")


def test_parts_that_moved_are_given_and_others_refused(run, tmp_path):
    config, folder, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.move(copy / "t5", tmp_path / "t5")
    assert f"{copy}/t5: not there; give from_pretrained the place of its t5, t5=PATH" in said(
        ITIT.from_pretrained, str(copy)
    )
    model = ITIT.from_pretrained(str(copy), device="cpu", t5=str(tmp_path / "t5"))
    assert model.record["step"] == finished_run.STEP
    other = weights.load_text_encoder(str(tmp_path / "t5"))
    other.init_weights(seed=99)
    weightsdir.save(str(tmp_path / "other"), other.state_dict(), other.config)
    assert "other/model.safetensors: damaged or replaced" in said(
        ITIT.from_pretrained, str(copy), t5=str(tmp_path / "other")
    )
    words = tmp_path / "words.model"
    shutil.copy(config.data.vocabulary, words)
    ITIT.from_pretrained(str(copy), device="cpu", t5=str(tmp_path / "t5"), vocabulary=str(words))
    words.write_bytes(train(["other words than those"] * 9, 40))
    assert "words.model: damaged or replaced" in said(
        ITIT.from_pretrained, str(copy), t5=str(tmp_path / "t5"), vocabulary=str(words)
    )


@pytest.mark.parametrize("place", ["/etc/t5", "../t5", "gs://somebody/t5", "a/../../t5"])
def test_a_file_does_not_say_what_is_opened_outside_of_its_folder(run, tmp_path, place):
    _, folder, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with tensorfile.TensorFile(str(copy / "model.safetensors")) as file:
        tensors, _ = file.read_all()
        record = json.loads(file.metadata[weights.RECORD])
    record["parts"]["t5"]["path"] = place
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    tensorfile.write(str(copy / "model.safetensors"), layout, tensors.values(), {weights.RECORD: json.dumps(record)})
    (copy / "hashes.json").unlink()
    message = f"its t5 lies outside of its folder, at {place}: if you trust that, give it to from_pretrained, t5=PATH"
    assert message in said(ITIT.from_pretrained, str(copy))
    assert ITIT.from_pretrained(str(copy), device="cpu", t5=f"{folder}/t5").record["step"] == finished_run.STEP


def test_a_run_without_image_tokenizer_and_vocabulary_can_be_exported(run, tmp_path):
    config, folder, pictures = run
    bare = replace(config, vqgan="", vocabulary="")
    step, tensors, meta = store.restore(config.train.workdir)
    meta = {"frozen": {"t5_weights": meta["frozen"]["t5_weights"]}}
    export.export(bare, (step, tensors, meta), str(tmp_path / "bare"), True, 2**30, None)
    model = ITIT.from_pretrained(str(tmp_path / "bare"), device="cpu")
    assert "made without vocabulary: give it one, --vocabulary=PATH" in said(model.generate, "a")
    assert "made without vqgan" in said(model.caption, Image.fromarray(pictures[0]))
    given = ITIT.from_pretrained(str(tmp_path / "bare"), device="cpu", vqgan=config.data.vqgan,
                                 vocabulary=config.data.vocabulary)  # fmt: skip
    whole = ITIT.from_pretrained(folder, device="cpu")
    assert np.array_equal(np.stack(given.generate("a cross")), np.stack(whole.generate("a cross")))
