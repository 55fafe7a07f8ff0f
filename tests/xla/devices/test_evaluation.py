"""Evaluation on a mesh compiles programs of its own, once, and the training step keeps those it has."""

from itit import train
from itit.training import metrics
from itit.xla import api
from tests.training.test_train import run_here, settings
from tests.xla.devices.test_train import SIZES, data  # noqa: F401


def test_the_training_step_is_not_traced_again(data, tmp_path, monkeypatch):  # noqa: F811
    counts, step, evaluate = [], train.train_step, train.Evaluation.run

    def counted_step(*args):
        found = step(*args)
        counts.append(("step", api.num_compilations()))
        return found

    def counted_evaluation(*args):
        before = api.num_compilations()
        evaluate(*args)
        counts.append(("evaluation", api.num_compilations() - before))

    monkeypatch.setattr(train, "train_step", counted_step)
    monkeypatch.setattr(train.Evaluation, "run", counted_evaluation)
    values = settings(data, **SIZES, workdir=str(tmp_path), eval_every=1, num_eval=16) | {"num_steps": 4}
    assert run_here(values) == 0
    assert [kind for kind, _ in counts[:3]] == ["evaluation", "step", "evaluation"]
    steps = [count for kind, count in counts if kind == "step"]
    inside = [count for kind, count in counts if kind == "evaluation"]
    assert inside[0] > 0 and inside[1:] == [0, 0, 0, 0]
    assert steps[0] == steps[1] == steps[2] == steps[3]
    assert metrics.curves(str(tmp_path))["eval/i2t"][0] == [0, 1, 2, 3, 4]
