"""tools.report_scenes: shares against answers that are known, what is drawn, and a whole report of a small run."""

import json
import re
import types

import numpy as np
import pytest
import torch
from PIL import Image

from itit.data import scenes
from itit.training import metrics
from tests.helpers import finished_run
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import report_scenes

ANSWERS = ("right", "wrong", "unparsable")


def draw(rng, count):
    return [scenes.sample(rng, ("never",)) for _ in range(count)]


def other(scene, rng):
    return next(drawn for drawn in iter(lambda: scenes.sample(rng, ("seen",)), None) if drawn != scene)


def answer_in_words(scene, kind, rng):
    if kind == "unparsable":
        return "a small red"
    return scenes.describe(scene if kind == "right" else other(scene, rng), rng)


def answer_in_pixels(scene, kind, rng):
    if kind == "unparsable":
        return rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
    return scenes.render(scene if kind == "right" else other(scene, rng), rng)


class Answers(finished_run.Known):
    """Text ids below `count` are the prompts, those above the captions of the pictures; ids are int64 [B, 1]."""

    def __init__(self, count):
        rng = self.rng = np.random.default_rng()
        self.scenes, self.count = draw(rng, count), count
        self.said, self.drawn = rng.choice(ANSWERS, count), rng.choice(ANSWERS, count)
        prompts = [scenes.describe(scene, rng) for scene in self.scenes]
        captions = [answer_in_words(scene, kind, rng) for scene, kind in zip(self.scenes, self.said, strict=True)]
        made = [answer_in_pixels(scene, kind, rng) for scene, kind in zip(self.scenes, self.drawn, strict=True)]
        super().__init__(prompts + captions, np.stack(made))
        ids = torch.arange(count)[:, None]
        self.batch = {"image_ids": ids, "text_ids": ids}

    def captions(self, image_ids):
        return image_ids % self.count + self.count

    def pictures(self, text_ids, name="prompt", rows=None):
        return super().pictures(text_ids, name) % self.count


def test_shares_are_counted(monkeypatch):
    monkeypatch.setattr(report_scenes, "CHUNK", 17)
    known = Answers(60)
    found = report_scenes.score(known, known.batch, known.words)
    sizes = np.array([len(scene) for scene in known.scenes])
    for name, kinds in (("caption", known.said), ("picture", known.drawn)):
        right = kinds == "right"
        assert found[f"{name}_score"] == pytest.approx(right.mean(), abs=1e-4)
        for size in set(sizes.tolist()):
            share = right[sizes == size].mean()
            assert found[f"{name}_score_by_objects"][size] == pytest.approx(share, abs=1e-4)
    assert len(found) == 4 and len(set(known.names)) == len(known.names) == 4  # each chunk has its own noise


def test_what_is_drawn_says_what_is_right():
    known = Answers(14)
    sections = report_scenes.sample_sections(known, known.batch, known.words)
    kinds_and_texts = (known.drawn, known.texts), (known.said, known.texts[14:])
    for section, (kinds, texts) in zip(sections, kinds_and_texts, strict=False):
        panels = [panel for row in section.rows for panel in row]
        assert len(panels) == 12
        for i, panel in enumerate(panels):
            assert np.array_equal(panel.picture, known.shown[i])
            assert panel.text == ("right: " if kinds[i] == "right" else "WRONG: ") + texts[i]
    assert [section.title.split()[0] for section in sections] == ["prompts", "pictures", "cycles:", "cycles:"]


def test_markdown_holds_the_numbers(tmp_path):
    def scored(caption, picture):
        by_objects = {1: caption, 3: picture}
        return {"caption_score": caption, "picture_score": picture, "caption_score_by_objects": by_objects,
                "picture_score_by_objects": by_objects}  # fmt: skip

    def text(report, pictures):
        report_scenes.write_markdown(report, str(tmp_path / "report.md"), dict.fromkeys(pictures, "shown"))
        return (tmp_path / "report.md").read_text()

    report = {"num_test": 321, "test": "moons", "step": 4321, "minutes": 12.5, "also": {},
              "untrained": scored(0.011, 0.022)} | scored(0.654, 0.322)  # fmt: skip
    alone = text(report, ["samples.png"])
    for part in ("321 test scenes of moons.", "Step 4321, 12.5 minutes", "| trained | 65.4% | 32.2% |",
                 "| untrained | 1.1% | 2.2% |", "\n| 1 | 65.4% | 65.4% |", "\n| 3 | 32.2% | 32.2% |"):  # fmt: skip
        assert part in alone, part
    assert not any(word in alone for word in ("control", "before", "claim.png", "Other test scenes"))
    report["also"] = {"suns": {"trained": scored(0.51, 0.41), "control": scored(0.31, 0.21)}}
    report |= {"control": scored(0.2, 0.1), "before_cycles": {"step": 7, "caption_score": 0.3, "picture_score": 0.04}}
    whole = text(report, ["samples.png", "claim.png", "curves.png"])
    for part in ("control: pairs alone, as many steps | 20.0% | 10.0% |", "the cycles join (greedy) | 30.0% | 4.0% |",
                 "| suns, trained | 51.0% | 41.0% |\n| suns, control | 31.0% | 21.0% |",
                 "| 1 | 65.4% | 65.4% | 20.0% | 20.0% |", "![shown](samples.png)", "![shown](curves.png)"):  # fmt: skip
        assert part in whole, part
    assert whole.index("claim.png") < whole.index("321 test scenes") and whole.count("claim.png") == 1


def test_a_whole_report(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng()
    pairs = [(scenes.render(scene, rng), scenes.describe(scene, rng)) for scene in draw(rng, 24)]
    config, tensors = finished_run.finish(tmp_path, pairs, 100)
    scored, score = [], report_scenes.score

    def recorded(translator, batch, words):
        model = translator.state.model
        scored.append([name for name in ("model", "ema") if finished_run.same_weights(model, tensors, name)])
        assert sorted(words(batch["text_ids"])) == sorted(text for _, text in pairs[: len(batch["text_ids"])])
        return score(translator, batch, words)

    monkeypatch.setattr(report_scenes, "score", recorded)
    given = types.SimpleNamespace(workdir=config.train.workdir, output=str(tmp_path / "out"), num_test=24, minutes=3.21,
                                  backend="cpu", control="", also=[])  # fmt: skip
    monkeypatch.setattr(report_scenes.flags, "FLAGS", given)
    report_scenes.main([])
    assert scored == [[], ["ema"]]  # untrained, then the averaged weights
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["step"], report["num_test"], report["minutes"]) == (finished_run.STEP, 24, 3.2)
    assert 0 <= report["untrained"]["caption_score"] <= 1 and 0 <= report["picture_score"] <= 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "samples.png",
                                                                   "curves.png"}  # fmt: skip
    assert f"captions exactly right: {report['caption_score']:.1%}" in capsys.readouterr().out
    given.workdir = str(tmp_path / "absent")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "resolved.cfg").write_text((tmp_path / "run" / "resolved.cfg").read_text())
    with pytest.raises(ValueError, match="--workdir=.*absent: no checkpoint"):
        report_scenes.main([])
    given.workdir, given.control = config.train.workdir, str(tmp_path / "absent")
    with pytest.raises(ValueError, match="--control=.*absent: no checkpoint"):
        report_scenes.main([])


def test_a_report_beside_its_control(tmp_path, monkeypatch, capsys):
    """The same run as its own control: the same scores; the scores over the steps are drawn."""
    config, _ = finished_run.of_scenes(tmp_path)
    with metrics.Metrics(config.train.workdir, 10) as writer:
        for step in (0, 5, 10):
            writer.scalars(step, {"eval/captions_exact": step / 20, "eval/pictures_exact": step / 40})
    resolved = tmp_path / "run" / "resolved.cfg"
    cycle = f"--t2i2t=full\n--t2i2t_batch=2\n--t2i2t_warmup_steps=7\n--text_data={config.data.paired_data}\n"
    resolved.write_text(resolved.read_text() + cycle)
    given = types.SimpleNamespace(workdir=config.train.workdir, output=str(tmp_path / "out"), num_test=12, minutes=0,
                                  backend="cpu", control=config.train.workdir,
                                  also=[f"again={config.data.paired_data}"])  # fmt: skip
    monkeypatch.setattr(report_scenes.flags, "FLAGS", given)
    report_scenes.main([])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["control"] == {name: report[name] for name in report["control"]} and len(report["control"]) == 4
    assert report["minutes"] is None and " minutes" not in (tmp_path / "out" / "report.md").read_text()
    again = report["also"].pop("again")
    assert (
        again["trained"] == again["control"] and set(again["control"]) == set(report["control"]) and not report["also"]
    )
    assert report["before_cycles"] == {"step": 5, "caption_score": 0.25, "picture_score": 0.125}
    assert "(untrained " in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "claim.png") as picture:
        assert picture.size[0] > 900


@pytest.mark.parametrize("groups", [("seen",), ("seen", "unpaired"), ("seen", "unpaired", "never")])
def test_the_rarest_objects_say_what_shows_them(groups):
    rng = np.random.default_rng()
    captions = [scenes.describe(scenes.sample(rng, (group,)), rng) for group in groups for _ in range(3)]
    assert report_scenes.shown_by(captions) == report_scenes.SHOWN_BY[groups[-1]]
    assert set(report_scenes.SHOWN_BY) == set(scenes.GROUPS)


@pytest.mark.parametrize("text", ["", "never", "never=", "=x*"])
def test_other_scenes_have_a_name_and_a_pattern(text):
    with pytest.raises(ValueError, match=f"--also={re.escape(text)}: must be NAME=PATTERN"):
        report_scenes.named_patterns([text])
