"""tools.bench: it runs the very step, its shares fall on the part that takes the time, flags override flagfiles."""

import random
import subprocess
import sys
import time

import pytest

from itit import inference, objectives, train_step
from itit.optim import Adafactor
from itit.train_step import tasks
from tests.common import ROOT
from tests.tiny import ONE_THREAD_SIZES, make_config
from tools import bench

ROWS = [f"launch/flagfiles/table2/row{number}.cfg" for number in ("03", "14")]

# Every function whose time is a part's.
FORWARD = {
    (train_step, "encode_text"): "T5 of the texts", (objectives, "i2t"): "i2t + i2i",
    (inference, "generate"): "t2i2t synthesis", (objectives, "_reconstruct_image"): "t2i2t middle",
    (objectives, "t2i2t"): "t2i2t final", (inference, "caption_greedy"): "i2t2i synthesis",
    (objectives, "_reconstruct_text"): "i2t2i middle", (objectives, "i2t2i"): "i2t2i final, with T5",
    (objectives, "t2t"): "t2t", (Adafactor, "step"): "optimizer, EMA", (train_step, "prepare"): "rest",
}  # fmt: skip
# Those whose results carry a gradient.
BACKWARD = {
    place: FORWARD[place]
    for place in FORWARD
    if place[1] in ("i2t", "_reconstruct_image", "t2i2t", "_reconstruct_text", "i2t2i", "t2t")
}


def flag_lines(settings):
    return [f"--{name}={value}" for name, value in settings.items() if not name.endswith("_batch")]


def nap(naps, seconds):
    if naps["on"]:
        time.sleep(seconds)


def slow_forward(function, sleep):
    def run(*args, **kwargs):
        sleep()
        return function(*args, **kwargs)

    return run


def slow_backward(function, sleep):
    """The gradient of what the function returns takes its time to pass."""

    def run(*args, **kwargs):
        out = function(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        first.register_hook(lambda grad: sleep())
        return out

    return run


def check(monkeypatch, sleeps, naps):
    """The parts that sleep take most of the time, in the proportion of their sleeps, which naps["on"] starts."""
    steps, step = [], train_step.train_step

    def last_is_slow(*args):  # the profiled one
        steps.append(None)
        naps["on"] = len(steps) == 3
        return step(*args)

    monkeypatch.setattr(train_step, "train_step", last_is_slow)
    seconds, shares = bench.measure(make_config(ema_decay=0.9), 1)
    assert len(seconds) == 1 and len(steps) == 3
    assert shares.keys() == set(bench.PARTS) and sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    found = sum(shares[part] for part in sleeps)
    assert found > 0.5
    for part, sleep in sleeps.items():
        expected = sleep / sum(sleeps.values())
        assert shares[part] / found == pytest.approx(expected, rel=0.25, abs=0.04), (part, sleeps, shares)


@pytest.mark.parametrize("slow, places", [(slow_forward, FORWARD), (slow_backward, BACKWARD)])
def test_shares_fall_on_the_parts_that_take_the_time(monkeypatch, slow, places):
    sleeps, naps = {part: random.uniform(0.3, 0.9) for part in places.values()}, {}
    for (owner, name), part in places.items():
        monkeypatch.setattr(owner, name, slow(getattr(owner, name), lambda part=part: nap(naps, sleeps[part])))
    check(monkeypatch, sleeps, naps)


@pytest.mark.parametrize("slow", [slow_forward, slow_backward])
def test_three_parts_are_one_function(monkeypatch, slow):
    """Text-to-image, the end of a cycle, unpaired image-to-image: in this order, each gets its own."""
    sleeps, naps = {"t2i": 0.5, "i2t2i final, with T5": 1.0, "i2i, unpaired": 1.5}, {}
    t2i, calls = objectives.t2i, []

    def one_of_three(*args):
        calls.append(list(sleeps.values())[len(calls) % 3])
        return slow(t2i, lambda seconds=calls[-1]: nap(naps, seconds))(*args)

    monkeypatch.setattr(objectives, "t2i", one_of_three)
    check(monkeypatch, sleeps, naps)


def test_it_runs_the_very_step(monkeypatch):
    calls = []
    real = train_step.train_step
    monkeypatch.setattr(train_step, "train_step", lambda *args: calls.append(args) or real(*args))
    config = make_config(t2i_batch=6, t2t_batch=0, i2t2i_warmup_steps=50)
    assert len(bench.measure(config, 3)[0]) == 3
    assert len(calls) == 5
    for i, (_, batch, noises, _, used, active) in enumerate(calls):
        assert used is config and active == {"t2i": 6, "i2t": 4, "t2i2t": 4, "i2t2i": 4, "i2i": 4}
        assert {key: tuple(value.shape) for key, value in batch.items()} == {
            f"{task}/{field}": (rows if i else 1, {"image_ids": 16, "text_ids": 8}[field])
            for task, rows in active.items()
            for field in ("image_ids", "text_ids")
            if (task, field) not in {("t2i2t", "image_ids"), ("i2t2i", "text_ids"), ("i2i", "text_ids")}
        }
        assert len(noises) == 1 and noises[0].key[1] == i
        for name, ids in batch.items():
            assert ids.min() >= 0 and ids.max() < (32 if name.endswith("image_ids") else 40)
            assert name.endswith("image_ids") or ((ids == 1).sum(1) == 1).all()


def test_flags_override_flagfiles(monkeypatch):
    monkeypatch.chdir(ROOT)
    paired, full = (bench.read_config(row, ["--t5_size=base", "--dropout=0.2"], 4) for row in ROWS)
    assert full.t5.size == "base" and full.model.text_feature_dim == 768 and full.model.dropout == 0.2
    assert (full.data.vqgan, full.t5.weights) == ("", "")  # the flagfile names both
    assert tasks(paired, 0) == {"t2i": 4, "i2t": 4}
    assert tasks(full, 0) == {"t2i": 4, "i2t": 4, "t2i2t": 4, "i2t2i": 4}
    assert sum(tasks(bench.read_config(ROWS[1], [], 0), 0).values()) == 2048
    with pytest.raises(ValueError, match="none.cfg"):
        bench.read_config("none.cfg", [], 0)


def test_the_command():
    settings = flag_lines(ONE_THREAD_SIZES)
    command = [sys.executable, "-m", "tools.bench", f"--flagfile={','.join(ROWS)}", "--batch=2", "--steps=1", *settings]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    head, *lines = ended.stdout.splitlines()
    assert "--steps=1" in head
    width = max(len(label) for label in bench.PARTS) + len("share of ")
    found = {line[:width].strip(): line[width:].split() for line in lines}
    cells = {label: [float(x) if x not in "-%" else x for x in values] for label, values in found.items()
             if label.startswith(("seconds", "steps/s", "time", "share", "samples"))}  # fmt: skip
    assert cells["samples a step"] == [4, 8]
    first, second = cells["seconds a step"]
    assert cells["time, of the first"] == [1.0, pytest.approx(second / first, abs=0.1)]
    assert cells["steps/s"][0] == pytest.approx(1 / first, rel=0.05)
    assert found["T5"] == ["nano,", "random", "nano,", "random"]
    for column in (0, 1):
        shares = [[x for x in values if x != "%"][column] for label, values in cells.items() if "share" in label]
        assert sum(x for x in shares if x != "-") == pytest.approx(100, abs=1)
    assert cells["share of t2i2t synthesis"][0] == "-" and cells["share of t2i2t synthesis"][1] > 0


def test_the_command_without_flagfile():
    ended = subprocess.run([sys.executable, "-m", "tools.bench"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.strip().splitlines()[-1].startswith("error: ")
