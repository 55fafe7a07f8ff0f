"""tools.sweep: every cell is drawn and measured once; a picture of the results."""

import json
import types

import numpy as np
import pytest
from PIL import Image

from itit.backends.local import Local
from itit.data import scenes
from tests.helpers import finished_run
from tests.helpers.common import squeezenet
from tools import sweep
from tools.generation import generation
from tools.scoring import fid, picture_features


def test_too_few_pictures_are_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red ball\n" * 5)
    flags = dict(prompts=str(tmp_path / "prompts.txt"), num_prompts=0, force=False, reference="real", inception="",
                 features="x", output=str(tmp_path / "out"))  # fmt: skip
    monkeypatch.setattr(sweep.flags, "FLAGS", types.SimpleNamespace(**flags))
    monkeypatch.setattr(sweep, "flags_lib", types.SimpleNamespace(from_flags=lambda section: generation.Loading()))
    with pytest.raises(ValueError, match=r"^5 pictures \(made\): below 2048"):
        sweep.main(None)
    (tmp_path / "prompts.txt").write_text("a red ball\n" * fid.MIN_PICTURES)
    model = types.SimpleNamespace(backend=None, picture_size=8)
    monkeypatch.setattr(sweep.generation, "load", lambda loading: model)
    monkeypatch.setattr(sweep.generation, "export_pictures", lambda *arguments: pytest.fail("drawn"))
    monkeypatch.setattr(sweep.picture_features, "of", lambda *arguments: None)
    monkeypatch.setattr(sweep.fid, "measure", lambda *arguments: (types.SimpleNamespace(count=7), None))
    with pytest.raises(ValueError, match=r"^7 pictures \(reference\): below 2048"):
        sweep.main(None)
    assert not (tmp_path / "out").exists()


def test_a_grid_that_is_killed_carries_on(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(24)]
    pairs = [(scenes.render(scene, rng), scenes.describe(scene, rng)) for scene in drawn]
    config, _ = finished_run.finish(tmp_path, pairs, 100)
    (tmp_path / "real").mkdir()
    for i, (picture, _) in enumerate(pairs[:6]):
        Image.fromarray(picture).save(tmp_path / "real" / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(text for _, text in pairs))
    flags = vars(generation.Loading()) | dict(
        workdir=config.train.workdir, backend="cpu", prompts=str(tmp_path / "prompts.txt"), num_prompts=4,
        reference=str(tmp_path / "real"), inception="", features=str(squeezenet()), temperatures=["0", "40"],
        guidance_scales=["0", "2"], ramps=["linear", "constant"], num_decode_steps=None, seed=0, force=True,
        output=str(tmp_path / "out"),
    )  # fmt: skip
    loading = generation.Loading(workdir=config.train.workdir, backend="cpu")
    monkeypatch.setattr(sweep.flags, "FLAGS", types.SimpleNamespace(**flags))
    monkeypatch.setattr(sweep, "flags_lib", types.SimpleNamespace(from_flags=lambda section: loading))
    made, export = [], generation.export_pictures

    def counted(model, prompts, output, drawing, batch_size):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((output, drawing.choice_temperature, drawing.guidance_scale, model.config.decode.guidance_schedule))
        return export(model, prompts, output, drawing, batch_size)

    monkeypatch.setattr(sweep.generation, "export_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep.main(None)
    first, made[:] = list(made), []
    monkeypatch.setattr(sweep.generation, "export_pictures", lambda *a: made.append(a[2]) or export(*a))
    sweep.main(None)
    assert len(first) == 3 and len(made) == 5 and not {cell[0] for cell in first} & set(made)
    assert {cell[1:] for cell in first} == {(0.0, 0.0, "linear"), (0.0, 0.0, "constant"), (0.0, 2.0, "linear")}
    report = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert len(report["cells"]) == 8 and report["too_few_pictures"]
    assert report["best"] == min(report["cells"], key=lambda cell: cell["frechet_squeezenet"])
    extractor = picture_features.other(str(squeezenet()), Local("cpu"))
    stats = [fid.measure(str(place), extractor, 64) for place in (tmp_path / made[-1] / "pictures", tmp_path / "real")]
    expected = fid.compare(*stats, extractor, force=True)["frechet_squeezenet"]
    assert report["cells"][-1]["frechet_squeezenet"] == pytest.approx(expected, rel=1e-4)
    assert Image.open(tmp_path / "out" / "sweep.png").size[0] > 900
    assert "best: " in capsys.readouterr().out
