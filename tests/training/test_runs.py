"""What a run leaves behind: its settings from the beginning on, through every start."""

import random

import pytest

from itit import flags
from itit.config import Config, replace
from itit.training import runs


def config(**values):
    return replace(Config(), preset="nano", **values).resolve()


def texts(**values):
    return flags.texts(config(**values))


def test_settings_of_every_start_are_kept(tmp_path):
    run, first, second = str(tmp_path), random.randrange(1, 99), random.randrange(100, 999)
    assert runs.keep_settings(run, config(seed=1), 0) == {}
    assert runs.keep_settings(run, config(seed=1), first) == {} and runs.history(run) == [(0, texts(seed=1))]
    changed = runs.keep_settings(run, config(seed=2, synth_decode_steps=5), second)
    assert changed == {"seed": ("1", "2"), "synth_decode_steps": (None, "5")}
    assert runs.history(run) == [(0, texts(seed=1)), (second, texts(seed=2, synth_decode_steps=5))]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"resolved-until-{second:08d}.cfg", "resolved.cfg"]
    assert runs.settings(run) == config(seed=2, synth_decode_steps=5)
    assert runs.keep_settings(run, config(seed=3), 1000)["synth_decode_steps"] == ("5", None)
    assert [begin for begin, _ in runs.history(run)] == [0, second, 1000]


def test_starts_that_saved_nothing_leave_nothing(tmp_path):
    run = str(tmp_path)
    runs.keep_settings(run, config(seed=1), 0)
    assert runs.keep_settings(run, config(seed=2), 50)["seed"] == ("1", "2")
    assert runs.keep_settings(run, config(seed=3), 50)["seed"] == ("1", "3")
    assert runs.history(run) == [(0, texts(seed=1)), (50, texts(seed=3))]
    assert runs.keep_settings(run, config(seed=1), 50) == {} and runs.history(run) == [(0, texts(seed=1))]


def test_a_run_that_goes_back_forgets_what_came_after(tmp_path):
    """As where the newest checkpoints are damaged; and one that begins anew, everything."""
    run = str(tmp_path)
    for step, seed in ((0, 1), (50, 2), (70, 3)):
        runs.keep_settings(run, config(seed=seed), step)
    assert runs.keep_settings(run, config(seed=4), 60)["seed"] == ("2", "4")
    assert runs.history(run) == [(0, texts(seed=1)), (50, texts(seed=2)), (60, texts(seed=4))]
    assert runs.keep_settings(run, config(seed=5), 40)["seed"] == ("1", "5")
    assert runs.history(run) == [(0, texts(seed=1)), (40, texts(seed=5))]
    assert runs.keep_settings(run, config(seed=6), 0) == {} and runs.history(run) == [(0, texts(seed=6))]


def test_settings_of_another_version_are_compared_as_they_stand(tmp_path):
    (tmp_path / "resolved.cfg").write_text("# old\n\n--gone=7\n--seed=1\n")
    changed = runs.keep_settings(str(tmp_path), config(seed=2), 9)
    assert changed["gone"] == ("7", None) and changed["seed"] == ("1", "2") and changed["preset"] == (None, "nano")
    assert runs.history(str(tmp_path))[0] == (0, {"gone": "7", "seed": "1"})


def test_the_best_checkpoint_has_the_same(tmp_path):
    run, best = str(tmp_path / "run"), str(tmp_path / "best")
    (tmp_path / "run").mkdir()
    for step, seed in ((0, 1), (50, 2), (70, 3), (60, 4)):
        runs.keep_settings(run, config(seed=seed), step)
        runs.copy_settings(run, best)
        assert runs.history(best) == runs.history(run)
    with pytest.raises(ValueError, match="--workdir=.*none: no run there"):
        runs.settings(str(tmp_path / "none"))
