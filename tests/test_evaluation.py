"""Evaluation while a run trains: what it counts, that it changes nothing, and the best checkpoint."""

import numpy as np
import pytest
import torch

from itit import checkpoint, metrics, runs
from itit.data.records import RecordWriter, encode_example
from itit.evaluation import Evaluation
from itit.scores import captions
from tests.test_train import data, run_here, settings  # noqa: F401

ALONE = dict(t2i2t_batch=0, i2t2i_batch=0, t2t_batch=0, i2i_batch=0, t2i2t="off", i2t2i="off")


def tensors(folder):
    return checkpoint.restore(str(folder))[1]


def test_evaluation_changes_nothing(data, tmp_path):  # noqa: F811
    values = settings(data, **ALONE, num_steps=3, vocabulary=str(data / "words.model"), bos_id=127)
    assert run_here(values | {"workdir": str(tmp_path / "without")}) == 0
    assert run_here(values | {"workdir": str(tmp_path / "with"), "eval_every": 1, "num_eval": 10}) == 0
    without, found = tensors(tmp_path / "without"), tensors(tmp_path / "with")
    assert without.keys() == found.keys() and all(torch.equal(without[name], found[name]) for name in found)
    curves = metrics.curves(str(tmp_path / "with"))
    for name in ("t2i", "i2t", "i2t_i2i", "CIDEr"):
        assert curves[f"eval/{name}"][0] == [0, 1, 2, 3], name
    assert curves["eval/i2t"][1][0] > 1 and len(set(curves["eval/i2t"][1])) == 4


def write_pairs(path, pictures, rng):
    """Each picture twice, with two texts."""
    with RecordWriter(str(path)) as writer:
        for i in range(pictures):
            codes = rng.integers(40, size=16)
            for j in range(2):
                text = np.array([3 + 2 * i + j, 9, 20 + i, 1, 0, 0, 0, 0])
                writer.write(encode_example({"image_ids": codes, "text_ids": text}))
    return str(path)


def test_pictures_are_tokenized_first(data, tmp_path):  # noqa: F811
    values = settings(data, "raw", **ALONE, num_steps=2, vocabulary=str(data / "words.model"), eval_every=1,
                      vqgan=str(data / "vqgan"), workdir=str(tmp_path))  # fmt: skip
    assert run_here(values) == 0
    assert {"eval/t2i", "eval/i2t", "eval/CIDEr"} <= set(metrics.curves(str(tmp_path)))


def test_records_of_one_picture_are_its_references(data, tmp_path, monkeypatch):  # noqa: F811
    path = write_pairs(tmp_path / "pairs.tfrecord", 5, np.random.default_rng())
    seen = []
    monkeypatch.setattr(captions, "quick", lambda told, references: seen.append((told, references)) or 1.5)
    values = settings(data, **ALONE, num_steps=2, eval_every=2, eval_data=path, vocabulary=str(data / "words.model"))
    assert run_here(values | {"workdir": str(tmp_path / "run")}) == 0
    told, references = seen[-1]
    assert len(told) == len(references) == 5 and all(len(texts) == 2 for texts in references)
    assert metrics.curves(str(tmp_path / "run"))["eval/CIDEr"] == ([0, 2], [1.5, 1.5])


@pytest.mark.parametrize("name, scores, best", [("CIDEr", [0.1, 0.3, 0.9, 0.5], 2), ("i2t", [0.8, 0.3, 0.9, 0.2], 3)])
def test_the_best_checkpoint_is_kept(data, tmp_path, monkeypatch, name, scores, best):  # noqa: F811
    given = iter(scores)
    monkeypatch.setattr(Evaluation, "_losses", lambda self: {"i2t": next(given) if name == "i2t" else 1.0})
    monkeypatch.setattr(Evaluation, "_cider", lambda self: next(given) if name == "CIDEr" else 0.0)
    values = settings(data, **ALONE, num_steps=3, eval_every=1, keep_best=name, checkpoint_every=1, keep_last=1,
                      vocabulary=str(data / "words.model"), workdir=str(tmp_path))  # fmt: skip
    assert run_here(values | {"stop_after_steps": 2}) == 0
    assert run_here(values) == 0  # knows the best of the call before
    step, kept, meta = checkpoint.restore(str(tmp_path / "best"))
    assert step == best and meta["best"] == (scores[best] if name == "CIDEr" else -scores[best])
    assert checkpoint.latest_step(str(tmp_path)) == 3
    assert runs.read_config(str(tmp_path / "best"), {}).train.keep_best == name
    changed = [n for n, t in tensors(tmp_path).items() if not torch.equal(t, kept[n])]
    assert bool(changed) == (best != 3)


def test_what_does_not_go_together(data, tmp_path):  # noqa: F811
    values = settings(data, workdir=str(tmp_path))
    for changes, message in (({"keep_best": "i2t"}, "--eval_every=0: must be above 0 for keep_best=i2t"),
                             ({"keep_best": "CIDEr", "eval_every": 1}, "--keep_best=CIDEr: must be t2i or i2t"),
                             ({"num_eval": 0}, "--num_eval=0: must be in .1, ")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run_here(values | changes)
