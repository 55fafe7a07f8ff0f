"""Training as a user does it: `python -m itit.train` on small records, interrupted, continued, and given bad input.

Shapes: B batch, N image tokens, L text tokens.
"""

import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itit import flags, train
from itit.checkpoint import store, weightsdir
from itit.config import Config, T5Config, VqganConfig, replace
from itit.data import scenes
from itit.data.records import RecordWriter, encode_example
from itit.models import VQGAN, T5Encoder
from itit.tasks import LOSSES
from tests.helpers import small
from tests.helpers.common import ROOT
from tools import train_sentencepiece

# Every task; a step of it takes a tenth of a second.
TASKS = dict(
    t2i_batch=4, i2t_batch=4, t2i2t_batch=2, i2t2i_batch=2, t2t_batch=2, i2i_batch=2, t2i2t_warmup_steps=2,
    i2t2i_warmup_steps=3, vocab_size=128, bos_id=127, num_decode_steps=3, learning_rate=1e-3, lr_warmup_steps=2,
    num_steps=6, log_every=1, sample_every=0, compute_dtype="fp32", backend="cpu", image_size=16,
)  # fmt: skip

# Imports once and forks for each command line, which then runs as `python -m itit.train` does; writes what each said.
FORKS = """
import json, os, runpy, sys
import itit.train
del sys.modules["itit.train"]
folder, cases = sys.argv[1], json.loads(sys.argv[2])
for i, arguments in enumerate(cases):
    if os.fork() == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{i}.{name}", os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["train.py", *arguments]
        runpy.run_module("itit.train", run_name="__main__", alter_sys=True)
        os._exit(99)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    open(f"{folder}/{i}.code", "w").write(str(code))
"""


def png():
    """A random scene as a PNG."""
    rng, data = np.random.default_rng(), io.BytesIO()
    Image.fromarray(scenes.render(scenes.sample(rng, ("seen",)), rng)).save(data, "PNG")
    return data.getvalue()


def write_ids(path, count, **changes):
    """Pairs of random ready ids; `changes` replaces features."""
    with RecordWriter(str(path)) as writer:
        for ids in small.random_texts(count, small.small()).numpy():
            features = {"image_ids": np.random.default_rng().integers(40, size=16), "text_ids": ids}
            writer.write(encode_example({k: v for k, v in (features | changes).items() if v is not None}))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of ids.tfrecord, raw.tfrecord (Scenes), words.model and a random vqgan/."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng()
    torch.seed()
    write_ids(folder / "ids.tfrecord", 24)
    captions = []
    with RecordWriter(str(folder / "raw.tfrecord")) as writer:
        for _ in range(24):
            scene, png = scenes.sample(rng, ("seen",)), io.BytesIO()
            Image.fromarray(scenes.render(scene, rng)).save(png, "PNG")
            captions.append(scenes.describe(scene, rng))
            writer.write(encode_example({"image": png.getvalue(), "text": captions[-1]}))
    (folder / "words.model").write_bytes(train_sentencepiece.train(captions * 5, 100))
    vqgan = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                        codebook_size=40)  # fmt: skip
    weightsdir.save(str(folder / "vqgan"), VQGAN(vqgan).state_dict(), vqgan)
    return folder


def settings(data, name="ids", **changes):
    values = {f"{stream}_data": str(data / f"{name}.tfrecord") for stream in ("paired", "image", "text")}
    return small.SIZES | TASKS | values | changes


def arguments(values):
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values.items()]


def start(values):
    return subprocess.Popen(
        [sys.executable, "-m", "itit.train", *arguments(values)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def run_here(values):
    """The same in this process, where nothing new is imported."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return train.run(replace(Config(), **values))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_forked(folder, cases):
    """[(exit code, stdout, stderr)] of these command lines."""
    folder.mkdir()
    lines = json.dumps([arguments(case) if isinstance(case, dict) else case for case in cases])
    subprocess.run([sys.executable, "-c", FORKS, str(folder), lines], cwd=ROOT, check=True, timeout=300,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    return [(int((folder / f"{i}.code").read_text()), (folder / f"{i}.out").read_text(),
             (folder / f"{i}.err").read_text()) for i in range(len(cases))]  # fmt: skip


def steps_saved(workdir):
    return sorted(path.name for path in pathlib.Path(workdir, "checkpoints").iterdir())


def curves(workdir):
    events = EventAccumulator(str(next(pathlib.Path(workdir).glob("**/events.*")).parent))
    events.Reload()
    return events


def same(a, b):
    """Bit for bit the same tensors in the newest checkpoints of two runs."""
    (step_a, tensors_a, _), (step_b, tensors_b, _) = store.restore(str(a)), store.restore(str(b))
    different = [name for name in tensors_a if not torch.equal(tensors_a[name], tensors_b[name])]
    return step_a == step_b and tensors_a.keys() == tensors_b.keys() and not different


def test_a_run_on_pictures_and_texts(data, tmp_path):
    pytest.importorskip("tensorflow_text")
    values = settings(
        data, "raw", workdir=str(tmp_path / "run"), vocabulary=str(data / "words.model"), vqgan=str(data / "vqgan"),
        sample_every=3, num_samples=3, ema_decay=0.9, num_microbatches=2, num_steps=4, compute_dtype="bf16",
        random_flip=True, num_text_tokens=24,
    )  # fmt: skip
    taken = ("image_size", "num_image_tokens", "codebook_size", "vocab_size", "bos_id")
    process = start({name: value for name, value in values.items() if name not in taken})
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert len(re.findall(r"^step \d/4 ", out, re.M)) == 4 and "ETA" in out
    assert "RANDOM" in err and "24 records" in err and "parameters on cpu" in err
    assert f"taken from {data}/vqgan/config.json: --image_size=16 --num_image_tokens=16 --codebook_size=40" in err
    assert f"taken from {data}/words.model: --vocab_size=128" in err
    assert err.endswith(f"to try it: python -m tools.demo --workdir={tmp_path}/run\n")
    events = curves(tmp_path / "run")
    tags = events.Tags()
    expected = {"loss", "grad_norm", "learning_rate", "rate/steps_per_second", "rate/samples_per_second",
                "rate/input_wait", "host_memory_gib", "data/damaged", "data/cut_texts", "skipped",
                "time/to_first_step"}  # fmt: skip
    assert set(tags["scalars"]) == expected | {f"loss/{name}" for name in LOSSES}
    for name, steps in [("t2i", [1, 2, 3, 4]), ("t2i2t", [3, 4]), ("i2t2i", [4])]:
        points = events.Scalars(f"loss/{name}")
        assert [point.step for point in points] == steps and all(0 < point.value < 10 for point in points)
    names = ("prompt_to_picture", "picture_to_caption", "cycle_from_text", "cycle_from_image")
    assert set(tags["images"]) == {f"samples/{name}" for name in names}
    assert [picture.step for picture in events.Images("samples/prompt_to_picture")] == [3, 4]
    assert flags.from_flagfile(f"{tmp_path}/run/resolved.cfg") == replace(Config(), **values).resolve()
    step, tensors, _ = store.restore(str(tmp_path / "run"))
    assert step == 4 and {name.split("/")[0] for name in tensors} == {"model", "optimizer", "ema"}


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(data, tmp_path):
    """Stopped by a flag, by SIGTERM and by Ctrl-C, each time in the middle."""
    common = settings(data, num_steps=300, ema_decay=0.9, num_microbatches=2, checkpoint_every=120)
    whole, parts = common | {"workdir": str(tmp_path / "whole")}, common | {"workdir": str(tmp_path / "parts")}
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(parts)
        lines = []
        while sum(line.startswith("step ") for line in lines) < 3:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err
        step = store.latest_step(parts["workdir"])
        assert 3 <= step < 300 and f"interrupted: saved step {step}" in err.splitlines()[-1]
    assert run_here(parts | {"stop_after_steps": 5}) == 0
    assert store.latest_step(parts["workdir"]) == step + 5
    end = step + 8
    assert run_here(parts | {"stop_after_steps": 3}) == 0
    assert run_here(whole | {"stop_after_steps": end}) == 0
    assert store.latest_step(parts["workdir"]) == end
    assert same(whole["workdir"], parts["workdir"])
    points = [[(p.step, p.value) for p in curves(x["workdir"]).Scalars("loss")] for x in (whole, parts)]
    assert points[0] == points[1] and len(points[0]) == end


def test_over_fitting_one_batch_also_when_continued(data, tmp_path):
    common = settings(data, overfit_batch=True, num_steps=40, dropout=0.0, t2i2t_batch=0, t2i2t="off", i2t2i_batch=0,
                      i2t2i="off", learning_rate=1e-2)  # fmt: skip
    whole, parts = common | {"workdir": str(tmp_path / "whole")}, common | {"workdir": str(tmp_path / "parts")}
    assert run_here(whole) == 0
    losses = [point.value for point in curves(tmp_path / "whole").Scalars("loss")]
    means = [np.mean(losses[i : i + 8]) for i in range(0, 40, 8)]
    assert all(later < earlier for earlier, later in zip(means, means[1:], strict=False))
    assert means[-1] < 0.8 * means[0]
    assert run_here(parts | {"stop_after_steps": 7}) == 0
    assert run_here(parts) == 0
    assert same(whole["workdir"], parts["workdir"])


def test_a_signal_before_the_first_step_saves_nothing(data, tmp_path, monkeypatch, capsys):
    def prefetch(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return batches(*arguments)

    batches = train.prefetch
    monkeypatch.setattr(train, "prefetch", prefetch)
    assert run_here(settings(data, workdir=str(tmp_path / "run"))) == 143
    assert "nothing saved" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def damage(path, target):
    """Flips a bit in the middle of the records."""
    raw = bytearray(pathlib.Path(path).read_bytes())
    raw[len(raw) // 2] ^= 4
    target.write_bytes(raw)
    return str(target)


def test_bad_input_ends_in_one_line(data, tmp_path):
    saved = settings(data, workdir=str(tmp_path / "saved"), num_steps=2)
    assert run_here(saved) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    base = settings(data, workdir=str(tmp_path / "new"), num_steps=2)
    raw = settings(data, "raw", workdir=str(tmp_path / "new"), num_steps=2, vocabulary=str(data / "words.model"))
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    broken = damage(data / "ids.tfrecord", tmp_path / "broken.tfrecord")
    big = write_ids(tmp_path / "big.tfrecord", 8, image_ids=np.full(16, 40))
    pictures = write_ids(tmp_path / "pictures.tfrecord", 8, image_ids=None, image=png())
    bare = write_ids(tmp_path / "bare.tfrecord", 8, text_ids=None)
    (tmp_path / "torn").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "torn" / name).write_bytes((data / "vqgan" / name).read_bytes())
    torn = json.loads((tmp_path / "torn" / "config.json").read_text()) | {"channels": 16}
    (tmp_path / "torn" / "config.json").write_text(json.dumps(torn))
    t5 = T5Encoder(small.small().t5)
    shallow = T5Config(size="nano", dim=64, head_dim=16, ff_dim=128, num_layers=1, num_heads=4, vocab_size=128)
    weightsdir.save(str(tmp_path / "t5"), t5.state_dict(), shallow)
    cases = [
        (base | {"learning_rat": 1}, ["learning_rat", "learning_rate"]),
        (base | {"t2i2t": "off"}, ["--t2i2t=off", "t2i2t_batch"]),
        (base | {"workdir": ""}, ["--workdir is empty"]),
        (base | {"paired_data": str(tmp_path / "no*.tfrecord")}, ["--paired_data", "no*.tfrecord"]),
        (base | {"text_data": ""}, ["--text_data is empty"]),
        (base | {"image_data": str(tmp_path / "empty.tfrecord")}, ["--image_data", "empty.tfrecord", "no records"]),
        (base | {"paired_data": broken}, ["broken.tfrecord@"]),
        (base | {"paired_data": big}, ["big.tfrecord@", "40"]),
        (base | {"paired_data": bare}, ["--paired_data", "text_ids"]),
        (base | {"codebook_size": 20}, ["ids.tfrecord@", "20"]),
        (base | {"vqgan": str(data / "vqgan"), "codebook_size": 41}, ["--codebook_size=41", "40"]),
        (base | {"vqgan": str(data / "vqgan"), "image_size": 32}, ["--image_size=32", "16"]),
        (base | {"vqgan": str(tmp_path)}, ["config.json", str(tmp_path)]),
        (base | {"vqgan": str(tmp_path / "torn")}, ["torn", "config.json"]),
        (base | {"t5_weights": str(tmp_path / "t5")}, [str(tmp_path / "t5"), "config.json"]),
        (base | {"t5_weights": str(tmp_path)}, ["--t5_weights", "config.json"]),
        (raw | {"vqgan": str(data / "vqgan"), "vocab_size": 64, "bos_id": 63, "num_text_tokens": 24},
         ["--vocab_size=64", "words.model"]),
        (base | {"image_data": pictures}, ["--vqgan is empty", "i2t2i"]),
        (raw | {"vocabulary": "", "vqgan": str(data / "vqgan")}, ["--vocabulary is empty"]),
        (base | {"sample_every": 1, "vqgan": str(data / "vqgan"), "vocabulary": str(data / "no.model")}, ["no.model"]),
        (saved | {"embed_dim": 64}, ["--embed_dim=32", "64", "saved"]),
        (saved | {"ema_decay": 0.5}, ["saved", "ema/"]),
        (base | {"workdir": str(data / "ids.tfrecord" / "run")}, ["ids.tfrecord"]),
        (base | {"t2i2t_batch": 0, "t2i2t": "full"}, ["--t2i2t=full"]),
    ]  # fmt: skip
    if not torch.cuda.is_available():
        cases.append((base | {"backend": "cuda"}, ["--backend=cuda"]))
    results = run_forked(tmp_path / "said", [values for values, _ in cases])
    wrong = []
    for (values, parts), (code, _, err) in zip(cases, results, strict=True):
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        fine = code == 2 and len(said) == 1 and err.splitlines()[-1] == said[0] and "Traceback" not in err
        if not fine or not all(part in said[0] for part in parts):
            wrong.append((parts, code, err[-600:], {k: v for k, v in values.items() if base.get(k) != v}))
    assert not wrong, "\n\n".join(map(str, wrong))
    assert {path: path.read_bytes() for path in before} == before, "something saved has changed"
    assert not (tmp_path / "new" / "checkpoints").exists()


def test_damaged_records_within_the_budget_are_counted(data, tmp_path):
    broken = damage(data / "ids.tfrecord", tmp_path / "broken.tfrecord")
    values = settings(data, workdir=str(tmp_path / "run"), paired_data=broken, max_bad_records=1, num_steps=6)
    assert run_here(values) == 0
    assert curves(tmp_path / "run").Scalars("data/damaged")[-1].value == 1


def test_old_checkpoints_go_and_a_finished_run_stays_as_it_is(data, tmp_path):
    values = settings(data, workdir=str(tmp_path), num_steps=5, checkpoint_every=1, keep_last=2, t2i2t="half",
                      i2t2i="half")  # fmt: skip
    assert run_here(values) == 0
    assert steps_saved(tmp_path) == ["step_00000004", "step_00000005"]
    files = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.*")}
    assert run_here(values) == 0
    assert {path: path.read_bytes() for path in files} == files


def with_hook(monkeypatch, hook):
    """The states that training makes have this hook on the gradient of one bias."""
    make_state = train.make_state

    def hooked(*args):
        state = make_state(*args)
        state.model.text_decoder.head.bias.register_hook(hook)
        return state

    monkeypatch.setattr(train, "make_state", hooked)


def test_updates_that_are_not_finite_are_skipped_and_their_rows_written_down(data, tmp_path, monkeypatch):
    """As if these steps had not been: the other updates are those of a run in which nothing was wrong before them."""
    values = settings(data, workdir=str(tmp_path / "run"), num_steps=9, log_every=3, checkpoint_every=1, keep_last=9)
    calls = []
    with_hook(monkeypatch, lambda grad: calls.append(1) or (grad * torch.nan if len(calls) in (3, 4, 7) else grad))
    assert run_here(values) == 0
    folder = tmp_path / "run" / "skipped"
    assert sorted(path.name[:13] for path in folder.iterdir()) == ["step_00000002", "step_00000003", "step_00000006"]
    rows = train.Streams(replace(Config(), **values).resolve()).rows(3)
    record = json.loads((folder / "step_00000003-host_00000.json").read_text())
    assert record["rows"] == {task: places.tolist() for task, places in rows.items()} and record["grad_norm"] == "nan"
    points = [(point.step, point.value) for point in curves(tmp_path / "run").Scalars("skipped")]
    assert points == [(1, 0), (3, 1), (6, 1), (9, 1)]
    states = [store.restore(values["workdir"], step=step)[1] for step in range(1, 10)]
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False), 1):
        unchanged = all(torch.equal(before[name], after[name]) for name in before)
        assert unchanged == (step in (2, 3, 6)) and all(tensor.isfinite().all() for tensor in after.values())


def test_too_many_skipped_in_a_row_end_the_run_and_what_was_saved_stays(data, tmp_path, monkeypatch):
    values = settings(data, workdir=str(tmp_path), num_steps=50, log_every=2, checkpoint_every=5, max_skipped=4)
    calls = []
    with_hook(monkeypatch, lambda grad: calls.append(1) or (grad * torch.inf if len(calls) > 6 else grad))
    with pytest.raises(ValueError, match=r"^4 updates in a row were skipped, the last of step 9 \(from 0\): loss "):
        run_here(values)
    assert store.latest_step(str(tmp_path)) == 5
