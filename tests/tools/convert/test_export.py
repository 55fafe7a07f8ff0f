"""tools.export: the right weights out of the right checkpoint, parts that stand alone or are named, refusals."""

import json
import os
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from itit import ITIT, flags, models, storage
from itit.checkpoint import store, weightsdir
from itit.config import replace
from itit.data import scenes
from itit.models import t5 as t5_lib
from tests.helpers import finished_run
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import export

STEP = finished_run.STEP


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, Config, tensors of its checkpoint) of a small finished run."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(24)]
    config, tensors = finished_run.finish(
        folder, [(scenes.render(scene, rng), scenes.describe(scene, rng)) for scene in drawn], 100
    )
    return folder, config, tensors


def call(monkeypatch, run, output, **changed):
    given = dict(workdir=run[1].train.workdir, output=str(output), ema=None, step=None, report="", max_copied_gib=2.0,
                 t5_weights="", vqgan="", vocabulary="", dtype=None, about="", prompt="") | changed  # fmt: skip
    monkeypatch.setattr(export.flags, "FLAGS", types.SimpleNamespace(**given))
    export.main([])


@pytest.mark.parametrize("ema,kind", [(None, "ema"), (True, "ema"), (False, "model")])
def test_the_weights_asked_for_are_written(run, monkeypatch, tmp_path, ema, kind):
    call(monkeypatch, run, tmp_path / "out", ema=ema)
    found = safetensors.torch.load_file(str(tmp_path / "out" / "model.safetensors"))
    expected = {n.removeprefix(f"{kind}/"): t for n, t in run[2].items() if n.startswith(f"{kind}/")}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    model = models.load(str(tmp_path / "out"))
    assert finished_run.same_weights(model, run[2], kind) and model.config == run[1].model


def test_the_folder_stands_alone_and_every_file_is_hashed(run, monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    call(monkeypatch, run, out)
    files = json.loads((out / "hashes.json").read_text())["files"]
    assert set(files) | {"hashes.json", "t5", "vqgan"} == set(os.listdir(out))
    for name, entry in files.items():
        assert entry == {"bytes": (out / name).stat().st_size, "sha256": storage.sha256(str(out / name))}
    assert (out / "vocabulary.model").read_bytes() == (run[0] / "words.model").read_bytes()
    assert flags.from_flagfile(str(out / "training.cfg")) == run[1]
    said = capsys.readouterr().out
    assert f"step {STEP}, averaged weights" in said and "  vocabulary: vocabulary.model\n" in said
    drawn = models.T5Encoder(run[1].t5)
    drawn.init_weights(run[1].t5.seed)
    found = t5_lib.load(str(out / "t5"))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), drawn.parameters(), strict=True))
    theirs = weightsdir.load(str(run[0] / "vqgan"), type(finished_run.VQGAN_SIZES))
    ours = weightsdir.load(str(out / "vqgan"), type(finished_run.VQGAN_SIZES))
    assert ours[0] == theirs[0] and all(torch.equal(ours[1][name], t) for name, t in theirs[1].items())


def test_a_large_text_encoder_is_named_and_not_copied(run, tmp_path):
    folder, config, tensors = run
    t5 = models.T5Encoder(config.t5)
    t5.init_weights(config.t5.seed)
    weightsdir.save(str(tmp_path / "t5"), t5.state_dict(), config.t5)
    config = replace(config, t5_weights=str(tmp_path / "t5"))
    found = store.restore(config.train.workdir)
    num_bytes = sum(p.numel() * 4 for p in t5.parameters())
    small = export.export(config, found, str(tmp_path / "small"), None, num_bytes, None)
    large = export.export(config, found, str(tmp_path / "large"), None, num_bytes - 1, None)
    assert small["parts"]["t5"]["path"] == "t5" and (tmp_path / "small" / "t5").is_dir()
    sha256 = storage.sha256(str(tmp_path / "t5" / "model.safetensors"))
    assert large["parts"]["t5"] == {"path": str(tmp_path / "t5"), "sha256": sha256}
    assert not (tmp_path / "large" / "t5").exists()
    assert large["config"]["t5"]["weights"] == ""
    (tmp_path / "t5" / "hashes.json").unlink()
    again = export.export(config, found, str(tmp_path / "again"), None, 0, None)
    assert again["parts"]["t5"]["sha256"] == sha256


def test_weights_in_half_the_bytes_are_rounded_once(run, monkeypatch, tmp_path):
    """Every floating number to the nearest of bf16; loaded, they are float32 again, in all networks."""
    for dtype in ("fp32", "bf16"):
        call(monkeypatch, run, tmp_path / dtype, dtype=dtype, about="It draws.", prompt="a cross")
    for name in ("", "t5/", "vqgan/"):
        whole, half = (safetensors.torch.load_file(tmp_path / dtype / f"{name}model.safetensors")
                       for dtype in ("fp32", "bf16"))  # fmt: skip
        assert whole.keys() == half.keys() and {t.dtype for t in half.values()} == {torch.bfloat16}
        for key, tensor in whole.items():
            error = (half[key].double() - tensor.double()).abs()
            assert (error <= tensor.double().abs() * 2**-8).all(), key  # eight bits, the first of which is not stored
    model = ITIT.from_pretrained(str(tmp_path / "bf16"), device="cpu")
    for part in (model.state.model, model.state.t5, model.state.vqgan):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    half = safetensors.torch.load_file(tmp_path / "bf16" / "model.safetensors")
    assert all(torch.equal(p, half[name].float()) for name, p in model.state.model.named_parameters())
    assert (model.record["about"], model.record["prompt"]) == ("It draws.", "a cross")
    card = (tmp_path / "bf16" / "README.md").read_text()
    assert "\n\nIt draws.\n\n" in card and 'model.generate(["a cross"]' in card and "rounded to bfloat16;" in card
    assert "rounded to" not in (tmp_path / "fp32" / "README.md").read_text()


def test_another_step_and_moved_parts(run, monkeypatch, tmp_path):
    folder, config, tensors = run
    meta = store.restore(config.train.workdir)[2]
    moved = tmp_path / "moved"
    (folder / "vqgan").rename(moved)
    try:
        earlier = {name: t * 2 if t.is_floating_point() else t for name, t in tensors.items()}
        store.save(config.train.workdir, STEP - 2, store.whole(earlier), meta, 1)
        store.save(config.train.workdir, STEP, store.whole(tensors), meta, 2)
        call(monkeypatch, run, tmp_path / "out", step=STEP - 2, ema=False, vqgan=str(moved))
        assert finished_run.same_weights(models.load(str(tmp_path / "out")), earlier, "model")
        with pytest.raises(ValueError, match="vqgan: no config.json in it"):
            call(monkeypatch, run, tmp_path / "none")
    finally:
        moved.rename(folder / "vqgan")


def test_what_cannot_be_exported_is_refused_in_one_line(run, monkeypatch, tmp_path):
    folder, config, tensors = run
    found = store.restore(config.train.workdir)
    own = {name: t for name, t in tensors.items() if not name.startswith("ema/")}
    wider = replace(config, text_decoder_depth=3).resolve()
    cases = [
        (lambda out: call(monkeypatch, run, out, workdir=str(tmp_path)), "no run there, which would have resolved.cfg"),
        (lambda out: call(monkeypatch, run, out, step=99), "no whole checkpoint of step 99; there are"),
        (lambda out: call(monkeypatch, run, out, report=str(tmp_path / "no.json")), "no.json: no such file"),
        (lambda out: call(monkeypatch, run, out, report=str(tmp_path / "torn.json")), "torn.json: not JSON"),
        (lambda out: call(monkeypatch, run, out, report=str(tmp_path / "list.json")), "list.json: not a JSON object"),
        (lambda out: export.export(config, (STEP, own, found[2]), out, True, 1, None), "--ema: .* no averaged weights"),
        (lambda out: export.export(wider, found, out, None, 1, None), "does not fit its resolved.cfg: Missing key"),
        (lambda out: export.export(replace(config, t5_seed=5), found, out, None, 1, None), "--t5_weights: .* trained"),
        (lambda out: call(monkeypatch, run, str(tmp_path)), "already there"),
    ]
    (tmp_path / "torn.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    for refuse, part in cases:
        with pytest.raises(ValueError, match=part) as error:
            refuse(str(tmp_path / "out"))
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "resolved.cfg").write_text((folder / "run" / "resolved.cfg").read_text())
    with pytest.raises(ValueError, match="--workdir=.*empty: no checkpoint in it"):
        call(monkeypatch, run, tmp_path / "out", workdir=str(empty))


def test_a_report_beside_the_run_is_taken(run, monkeypatch, tmp_path):
    report = run[0] / "run" / "report.json"
    report.write_text(json.dumps({"step": STEP, "score": 0.4321}))
    try:
        call(monkeypatch, run, tmp_path / "out")
        assert "| score | 0.4321 |" in (tmp_path / "out" / "README.md").read_text()
        (tmp_path / "other.json").write_text(json.dumps({"step": STEP + 1, "score": 0.8765}))
        call(monkeypatch, run, tmp_path / "other", report=str(tmp_path / "other.json"))
        text = (tmp_path / "other" / "README.md").read_text()
        assert "| score | 0.8765 |" in text and f"Measured at step {STEP + 1}, not at" in text
    finally:
        report.unlink()
