"""How runs end that are not let to the end, and which do not begin: nothing that was saved is lost."""

import contextlib
import os
import signal

import pytest
import torch

from itit import locks, optim, samples, train
from itit.checkpoint import store
from itit.tasks import only
from itit.training import metrics
from itit.training.evaluation import Evaluation
from tests.training.test_train import data, run_here, same, settings, start, steps_saved  # noqa: F401

PAIRS = only("t2i", "i2t")
ALONE = dict(t2i_batch=0, i2t_batch=0, t2t_batch=0, i2i_batch=0)


def test_a_second_run_in_the_same_folder_is_refused(data, tmp_path):  # noqa: F811
    values = settings(data, **PAIRS, workdir=str(tmp_path / "run"), num_steps=2)
    with locks.hold(str(tmp_path / "run" / ".lock"), "first"):
        with pytest.raises(ValueError, match=f"^{tmp_path}/run: in use by another process"):
            run_here(values)
        assert os.listdir(tmp_path / "run") == [".lock"]
    assert run_here(values) == 0
    assert steps_saved(tmp_path / "run") == ["step_00000002"] and ".lock" not in os.listdir(tmp_path / "run")


def test_weights_that_are_no_numbers_end_the_run_and_the_last_good_ones_stay(data, tmp_path, monkeypatch):  # noqa: F811
    step = optim.Adafactor.step

    def poisoned(self, *arguments):
        made = step(self, *arguments)
        with torch.no_grad():
            if self.count == 4:
                list(self.parameters.values())[7].view(-1)[-1] = torch.nan
        return made

    monkeypatch.setattr(optim.Adafactor, "step", poisoned)
    values = settings(data, **PAIRS, workdir=str(tmp_path), num_steps=6, checkpoint_every=1, keep_last=1)
    with pytest.raises(ValueError, match="step_00000004.*not written: model/.* holds NaN or infinity"):
        run_here(values)
    assert store.restore(str(tmp_path))[0] == 3 and steps_saved(tmp_path) == ["step_00000003"]


def test_a_step_without_a_task_is_refused(data, tmp_path):  # noqa: F811
    values = settings(data, **ALONE, workdir=str(tmp_path / "run"), num_steps=6)
    with pytest.raises(ValueError) as refused:
        run_here(values)
    assert str(refused.value).startswith("step 0 has no task: --t2i2t_warmup_steps=2 and --i2t2i_warmup_steps=3")
    assert run_here(values | {"t2i2t_warmup_steps": 0}) == 0
    # After a warm-up on pairs, unpaired data may go on alone.
    paired = settings(data, workdir=str(tmp_path / "pairs"), num_steps=6)
    assert run_here(paired | {"stop_after_steps": 4}) == 0
    assert run_here(paired | ALONE) == 0


def test_a_stream_that_comes_or_goes_changes_nothing_of_the_others(data, tmp_path, caplog):  # noqa: F811
    values = settings(data, **PAIRS, workdir=str(tmp_path), num_steps=9)
    more = {"t2t_batch": 2}
    for changes, said in (({}, []), (more, []), ({}, []), (more, []), (more | {"i2i_batch": 2}, []),
                          (more | {"t2i2t_batch": 2, "t2i2t": "full"}, ["--t2i2t_batch was 0 up to step 5, is 2 now"]),
                          (more, ["--t2i2t_batch was 2 up to step 6, is 0 now"])):  # fmt: skip
        caplog.clear()
        assert run_here(values | changes | {"stop_after_steps": 1}) == 0
        warned = [r.getMessage() for r in caplog.records if "in another order" in r.getMessage()]
        assert [line.partition(":")[0] for line in warned] == said


def test_a_signal_while_samples_are_drawn_cuts_them_short(data, tmp_path, monkeypatch, capsys):  # noqa: F811
    """They are drawn when the run goes on, of the same step, and so are the scores."""
    values = settings(data, **PAIRS, num_steps=4, sample_every=2, eval_every=2, num_samples=2, num_eval=4,
                      vqgan=str(data / "vqgan"), vocabulary=str(data / "words.model"))  # fmt: skip
    drawn, pictures, told = [], samples._to_pixels, {"at": None}

    def to_pixels(*arguments):
        drawn.append(1)
        if len(drawn) == told["at"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return pictures(*arguments)

    monkeypatch.setattr(samples, "_to_pixels", to_pixels)
    assert run_here(values | {"workdir": str(tmp_path / "whole")}) == 0
    whole = len(drawn)
    for at in (2, whole // 2 + 1):  # in the samples of step 2, and of the last step
        drawn.clear()
        told["at"] = at
        folder = tmp_path / f"cut{at}"
        assert run_here(values | {"workdir": str(folder)}) == 143
        step = 2 if at == 2 else 4
        assert f"interrupted: saved step {step} in {folder}" in capsys.readouterr().err and len(drawn) == at
        told["at"] = None
        assert run_here(values | {"workdir": str(folder)}) == 0
        assert same(tmp_path / "whole", folder)
        for name, points in metrics.curves(str(tmp_path / "whole")).items():
            if name.startswith("eval/"):
                assert metrics.curves(str(folder))[name] == points and points[0] == [0, 2, 4]


def test_a_signal_in_a_step_leaves_samples_for_later(data, tmp_path, monkeypatch):  # noqa: F811
    values = settings(data, **PAIRS, num_steps=4, eval_every=2, num_eval=4, workdir=str(tmp_path))
    step, scored, evaluate = train.train_step, [], Evaluation.run

    def told(*arguments):
        if arguments[3] == train.learning_rate(1, arguments[4].optim):  # the second step
            os.kill(os.getpid(), signal.SIGHUP)
        return step(*arguments)

    monkeypatch.setattr(Evaluation, "run", lambda self, at, metrics: scored.append(at) or evaluate(self, at, metrics))
    with monkeypatch.context() as patched:
        patched.setattr(train, "train_step", told)
        assert run_here(values) == 129
    assert scored == [0] and store.latest_step(str(tmp_path)) == 2
    assert run_here(values) == 0
    assert scored == [0, 2, 4]


@pytest.mark.parametrize("lost", ["connection", "reader"])
def test_a_lost_connection_saves_and_a_lost_reader_goes_on(data, tmp_path, lost):  # noqa: F811
    steps = 300 if lost == "connection" else 12
    process = start(settings(data, **PAIRS, workdir=str(tmp_path), num_steps=steps, checkpoint_every=1000))
    assert process.stdout.readline().startswith("step ")
    if lost == "connection":
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=100)
        step = store.latest_step(str(tmp_path))
        assert process.returncode == 129 and f"interrupted: saved step {step}" in err.splitlines()[-1]
    else:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(100) == 0 and "warning: stdout: Broken pipe" in err and "Traceback" not in err
        assert store.latest_step(str(tmp_path)) == steps
