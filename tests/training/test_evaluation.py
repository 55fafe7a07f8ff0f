"""Evaluation while a run trains: what it counts, that it changes nothing, and the best checkpoint."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import sentencepiece
import torch

from itit import samples, train_step
from itit.backends.local import Local
from itit.checkpoint import store
from itit.data import scenes
from itit.data.records import RecordWriter, encode_example
from itit.data.streams import Streams
from itit.data.text import Detokenizer
from itit.scores import captions
from itit.tasks import only
from itit.training import evaluation, metrics, runs
from itit.training.evaluation import Evaluation
from itit.training.state import make_state
from tests.helpers import finished_run, tiny
from tests.training.test_train import data, run_here, settings  # noqa: F401

ALONE = only("t2i", "i2t")


def tensors(folder):
    return store.restore(str(folder))[1]


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


def scored(seed, monkeypatch, **flags):
    """Losses of a fresh model on 11 pairs, 4 at once, and [(part, noise)] of what was counted."""
    config = tiny.make_config(eval_every=1, **flags)
    state, draw = tiny.make_state(config, seed), torch.Generator().manual_seed(seed)
    batch = {"image_ids": tiny.random_images(11, config, draw).numpy(),
             "text_ids": tiny.random_texts(11, config, draw).numpy()}  # fmt: skip
    streams, parts = SimpleNamespace(num_eval=11, sample_batch=lambda count: batch), []

    def recorded(*arguments):
        parts.append((train_step.prepare(*arguments), arguments[2]))
        return parts[-1][0]

    monkeypatch.setattr(evaluation, "CHUNK", 4)
    monkeypatch.setattr(evaluation, "prepare", recorded)
    found = Evaluation(config, state, Local("cpu"), streams, {})._losses()
    return found, parts, state, config


@pytest.mark.parametrize("seed", tiny.seeds(2))
def test_losses_are_means_over_tokens_and_no_text_is_dropped(monkeypatch, seed):
    found, parts, state, config = scored(seed, monkeypatch)
    state.model.eval()
    sums, counts = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0)
    for part, noise in parts:
        one = torch.ones(())
        with torch.no_grad():
            losses = train_step.compute_losses(state, part, dict.fromkeys(found, one), noise, config)
        for name in found:
            sums[name] += float(losses[name])  # over a total of one: the sum
        counts["t2i"] += int(part.maskings["t2i"].mask.sum())
        counts["i2t_i2i"] += int(part.maskings["i2t"].mask.sum())
        counts["i2t"] += int((part.text_ids["i2t"] != 0).sum())
    assert [len(part.text_ids["i2t"]) for part, _ in parts] == [4, 4, 3]
    assert found == pytest.approx({name: sums[name] / counts[name] for name in found}, rel=1e-5)
    assert scored(seed, monkeypatch, t2i_text_drop_prob=0.7)[0] == found


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
    step, kept, meta = store.restore(str(tmp_path / "best"))
    assert step == best and meta["best"] == (scores[best] if name == "CIDEr" else -scores[best])
    assert store.latest_step(str(tmp_path)) == 3
    assert runs.settings(str(tmp_path / "best")).train.keep_best == name
    changed = [n for n, t in tensors(tmp_path).items() if not torch.equal(t, kept[n])]
    assert bool(changed) == (best != 3)


def test_a_best_checkpoint_is_never_without_its_settings(data, tmp_path, monkeypatch):  # noqa: F811
    """Killed in the middle of saving the best one, at any place."""
    values = settings(data, **ALONE, num_steps=2, eval_every=1, keep_best="t2i", workdir=str(tmp_path))
    save = store.save

    def killed(workdir, *arguments, **options):
        save(workdir, *arguments, **options)
        if workdir.endswith("best"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(store, "save", killed)
        run_here(values)
    best = str(tmp_path / "best")
    assert runs.restore(best)[0] == 0 and runs.settings(best).model.depth == values["depth"]


def test_what_does_not_go_together(data, tmp_path):  # noqa: F811
    values = settings(data, workdir=str(tmp_path))
    for changes, message in (({"keep_best": "i2t"}, "--eval_every=0: must be above 0 for keep_best=i2t"),
                             ({"keep_best": "CIDEr", "eval_every": 1}, "--keep_best=CIDEr: must be t2i or i2t"),
                             ({"num_eval": 0}, "--num_eval=0: must be in .1, ")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run_here(values | changes)


def test_exact_scenes_are_counted(tmp_path, monkeypatch):
    """A model that answers some rows right by construction, in both directions: just those count."""
    config, pairs = finished_run.of_scenes(tmp_path)
    good = np.random.default_rng().random((2, len(pairs))) < 0.5
    other = scenes.make_scene([scenes.Object("circle", "red", "small", "top left")])

    def told(self, image_ids, greedy):
        assert greedy
        vocabulary = sentencepiece.SentencePieceProcessor(model_file=config.data.vocabulary)
        wrong = [*vocabulary.encode(scenes.describe(other, np.random.default_rng())), 1]
        ids = scored._batch["text_ids"].copy()
        for row in np.flatnonzero(~good[0]):
            ids[row] = np.pad(wrong, (0, ids.shape[1] - len(wrong)))
        return torch.from_numpy(ids)

    def drawn(self, image_ids):
        return np.stack([scenes.render(s if right else other) for s, right in zip(truth, good[1], strict=True)])

    monkeypatch.setattr(samples.Translator, "captions", told)
    monkeypatch.setattr(samples.Translator, "pixels", drawn)
    monkeypatch.setattr(Evaluation, "_cider", lambda self: 0.0)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=1, eval_scenes=True))
    backend = Local("cpu")
    scored = Evaluation(config, make_state(config, backend), backend, Streams(config), {})
    truth = [scenes.parse(text) for text in Detokenizer(config.data.vocabulary).decode(scored._batch["text_ids"])]
    with metrics.Metrics(str(tmp_path / "curves"), 1) as writer:
        found = scored.run(0, writer)
    for name, right in (("captions_exact", good[0]), ("pictures_exact", good[1])):
        expected = np.mean([r or scene == other for r, scene in zip(right, truth, strict=True)])
        assert found[name] == pytest.approx(expected)
        assert metrics.curves(str(tmp_path / "curves"))[f"eval/{name}"][1] == pytest.approx([expected])


def test_exact_scenes_of_other_texts_are_refused(data, tmp_path):  # noqa: F811
    values = settings(data, "raw", **ALONE, num_steps=2, vocabulary=str(data / "words.model"), eval_every=1,
                      vqgan=str(data / "vqgan"), workdir=str(tmp_path), eval_scenes=True)  # fmt: skip
    with pytest.raises(ValueError, match="--eval_scenes: .* no caption of Scenes"):
        run_here(values)
    with pytest.raises(ValueError, match="--eval_scenes=True: must be false without --vocabulary"):
        run_here(values | {"vqgan": ""})
    with pytest.raises(ValueError, match="--keep_best=pictures_exact: .* without --eval_scenes"):
        run_here(values | {"eval_scenes": False, "keep_best": "pictures_exact"})
