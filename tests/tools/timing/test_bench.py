"""tools.bench: it runs the very step, its shares fall on the part that takes the time, flags override flagfiles."""

import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import record_function

from itit import inference, objectives, train_step
from itit.optim import Adafactor
from itit.train_step import tasks
from tests.helpers.common import ROOT
from tests.helpers.tiny import ONE_THREAD_SIZES, make_config
from tools import bench
from tools.timing.flops import step_flops

NAP = "nap of seconds: "
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


def nap(seconds):
    """Passes no time, which other work on the machine would add to: told_time reads it off the event's name."""
    with record_function(f"{NAP}{seconds}"):
        pass


def told_time(event):
    """The profiled event as it would be if nothing but naps took time: those what their names say."""
    own = float(event.name.removeprefix(NAP)) * 1e6 if event.name.startswith(NAP) else 1e-3
    told = {"self_cpu_time_total": own, "self_device_time_total": 0.0}
    kept = ("name", "device_type", "time_range", "sequence_nr", "cpu_parent")
    return SimpleNamespace(**{name: getattr(event, name) for name in kept}, **told)


def slow_forward(function, sleep):
    def run(*args, **kwargs):
        sleep()
        return function(*args, **kwargs)

    return run


class SlowBackward(torch.autograd.Function):
    """The identity; its gradient takes a nap."""

    @staticmethod
    def forward(ctx, x, sleep):
        ctx.sleep = sleep
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.sleep()
        return grad, None


def slow_backward(function, sleep):
    def run(*args, **kwargs):
        out = function(*args, **kwargs)
        if isinstance(out, dict):
            return {name: SlowBackward.apply(loss, sleep) if name == next(iter(out)) else loss
                    for name, loss in out.items()}  # fmt: skip
        return SlowBackward.apply(out, sleep)

    return run


def check(monkeypatch, sleeps):
    """The shares of the parts are those of their naps."""
    steps, step, shares_of = [], train_step.train_step, bench.shares
    monkeypatch.setattr(train_step, "train_step", lambda *args: steps.append(None) or step(*args))
    monkeypatch.setattr(bench, "shares", lambda events, on_gpu: shares_of([told_time(e) for e in events], on_gpu))
    seconds, _, shares, _ = bench.measure(make_config(ema_decay=0.9), 1)
    assert len(seconds) == 1 and len(steps) == 3
    assert shares.keys() == set(bench.PARTS) and sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values())
    for part, share in shares.items():
        assert share == pytest.approx(sleeps.get(part, 0) / sum(sleeps.values()), abs=1e-4), (part, sleeps, shares)


@pytest.mark.parametrize("slow, places", [(slow_forward, FORWARD), (slow_backward, BACKWARD)])
def test_shares_fall_on_the_parts_that_take_the_time(monkeypatch, slow, places):
    sleeps = {part: random.uniform(0.3, 0.9) for part in places.values()}
    for (owner, name), part in places.items():
        monkeypatch.setattr(owner, name, slow(getattr(owner, name), lambda part=part: nap(sleeps[part])))
    check(monkeypatch, sleeps)


@pytest.mark.parametrize("slow", [slow_forward, slow_backward])
def test_what_several_tasks_share_is_of_the_task_that_calls_it(monkeypatch, slow):
    """Text-to-image, the end of a cycle, unpaired image-to-image: in this order, each gets its own."""
    sleeps = {"t2i": 0.5, "i2t2i final, with T5": 1.0, "i2i, unpaired": 1.5}
    paint, calls = objectives._paint, []

    def one_of_three(*args):
        calls.append(list(sleeps.values())[len(calls) % 3])
        return slow(paint, lambda seconds=calls[-1]: nap(seconds))(*args)

    monkeypatch.setattr(objectives, "_paint", one_of_three)
    check(monkeypatch, sleeps)


def test_it_runs_the_very_step(monkeypatch):
    calls = []
    real = train_step.train_step
    monkeypatch.setattr(train_step, "train_step", lambda *args: calls.append(args) or real(*args))
    config = make_config(t2i_batch=6, t2t_batch=0, i2t2i_warmup_steps=50)
    result = bench.measure(config, 3)
    assert len(result.seconds) == 3 and not result.one_by_one and result.memory is None
    assert len(calls) == 5
    for i, (_, batch, noises, _, used, active, *_) in enumerate(calls):
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


def test_the_table_of_a_gpu():
    configs = [make_config(), make_config(t2t_batch=0)]
    shares = dict.fromkeys(bench.PARTS, 1 / len(bench.PARTS))
    results = [bench.Result([1.0, 3.0], [8.0, 12.0], shares, 1.25), bench.Result([0.5, 0.5], [], shares, 30.0)]
    lines = {line.split("  ")[0].strip() or line.split("  ")[1]: line.split()[-2:]
             for line in bench.table(["a", "b"], configs, results, "NVIDIA H200")[1:]}  # fmt: skip
    assert lines["kernels one by one"] == ["10.000", "-"] and lines["of the CUDA graph's"] == ["5.00", "-"]
    assert lines["memory, GiB"] == ["1.2", "30.0"]
    assert lines["steps/s"] == ["0.5000", "2.0000"] and lines["time, of the first"] == ["1.00", "0.25"]
    flops = [sum(step_flops(config, tasks(config, 0)).values()) for config in configs]
    found = [float(cell) for cell in lines["model TFLOP/s"]]
    peak = [float(cell.removesuffix("%")) / 100 for cell in lines["of the bf16 peak"]]
    assert peak == pytest.approx([x / 989 for x in found], abs=1e-3)
    assert found == pytest.approx([flops[0] / 2 / 1e12, flops[1] / 0.5 / 1e12], rel=0.01) and flops[0] > flops[1]


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
