"""tools.score_scenes: shares against answers that are known, cycles turn by turn, and a whole run with its curves."""

import io
import json
import types

import numpy as np
import pytest
from PIL import Image

from itit.data import scenes
from itit.data.records import RecordWriter, encode_example
from itit.training.metrics import Metrics
from tests.helpers import finished_run
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tests.tools.scoring.test_report_scenes import Answers
from tools import score_scenes


def test_scores_are_counted(monkeypatch):
    monkeypatch.setattr(score_scenes, "CHUNK", 17)
    known = Answers(60)
    found = score_scenes.score(known, known.batch, known.words, 40, 3)
    assert found["captions"]["exact"] == pytest.approx((known.said == "right").mean(), abs=1e-4)
    assert found["pictures"]["exact"] == pytest.approx((known.drawn == "right").mean(), abs=1e-4)
    assert found["CIDEr"] > 0
    # Of what is known, a caption depends on the number of the picture alone, and a picture on that of the text.
    said, drawn = (known.said == "right")[:40].mean(), (known.drawn == "right")[:40].mean()
    assert found["cycles"]["image"] == pytest.approx([said, drawn, said], abs=1e-4)
    assert found["cycles"]["text"] == pytest.approx([drawn, said, drawn], abs=1e-4)
    assert "cycles" not in score_scenes.score(known, known.batch, known.words, 0, 3)


def write_test(folder, split, count, rng):
    with RecordWriter(str(folder / f"{split}-00000-of-00001.tfrecord")) as writer:
        for _ in range(count):
            scene, data = scenes.sample(rng, (split,)), io.BytesIO()
            Image.fromarray(scenes.render(scene)).save(data, "PNG")
            writer.write(encode_example({"image": data.getvalue(), "text": scenes.describe(scene, rng)}))


def test_a_whole_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow_text")
    config, _ = finished_run.of_scenes(tmp_path)
    with Metrics(config.train.workdir, 10) as metrics:
        for step, share in ((3, 0.25), (7, 0.5)):
            metrics.scalars(step, {"eval/captions_exact": share})
    (tmp_path / "test").mkdir()
    for split in scenes.GROUPS:
        write_test(tmp_path / "test", split, 6, np.random.default_rng())
    given = types.SimpleNamespace(workdir=config.train.workdir, test=str(tmp_path / "test"), num_test=5, num_cycles=2,
                                  num_turns=2, output=str(tmp_path / "scores.json"), backend="cpu")  # fmt: skip
    monkeypatch.setattr(score_scenes.flags, "FLAGS", given)
    score_scenes.main([])
    found = json.loads((tmp_path / "scores.json").read_text())
    assert (found["step"], found["device"]) == (finished_run.STEP, "cpu")
    assert found["curves"] == {"captions_exact": [[3, 7], [0.25, 0.5]]}
    assert set(found["scores"]) == set(scenes.GROUPS)
    for scores in found["scores"].values():
        assert set(scores) == {"captions", "pictures", "CIDEr", "cycles"}
        assert [len(turns) for turns in scores["cycles"].values()] == [2, 2]
        assert set(scores["pictures"]["by_attribute"]) == {"shape", "colour", "size", "place"}
    assert "never: captions exactly right 0.0%" in capsys.readouterr().out
    given.workdir = str(tmp_path / "absent")
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "resolved.cfg").write_text((tmp_path / "run" / "resolved.cfg").read_text())
    with pytest.raises(ValueError, match="--workdir=.*absent: no checkpoint"):
        score_scenes.main([])
