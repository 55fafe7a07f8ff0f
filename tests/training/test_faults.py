"""What a run survives: kills, writes that fail, bad weather of a bucket. Nothing that was saved is lost, none by hand.

The short form; `tests/faults.sh` runs the long one (see faults.py). Training is real: the command's own function in a
process of its own, on Scenes as ready ids, with a very small model.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import sentencepiece
import torch

from itit import storage, train
from itit.checkpoint import store
from itit.config import Config, VqganConfig, replace
from itit.data import scenes
from itit.data.records import RecordWriter, encode_example
from itit.models import VQGAN
from tests.checkpoint.test_checkpoint import random_tensors, same
from tests.helpers import processes, small
from tests.helpers.faults import LONG, report, rounds
from tests.helpers.flaky_storage import BUCKET, Weather, gcs  # noqa: F401 (a fixture)
from tests.training.test_train_hosts import host
from tools import train_sentencepiece

NUM_SCENES, LENGTH = 200, 24
SIZES = small.SIZES | dict(
    vocab_size=128, bos_id=127, num_text_tokens=LENGTH, t2i_batch=4, i2t_batch=4, t2i2t_batch=2, i2t2i_batch=2,
    t2t_batch=0, i2i_batch=0, t2i2t_warmup_steps=4, i2t2i_warmup_steps=8, num_decode_steps=2, lr_warmup_steps=2,
    num_steps=100_000, learning_rate=1e-3, depth=1, image_decoder_depth=1, text_decoder_depth=1, ema_decay=0.9,
    log_every=5, sample_every=0, checkpoint_every=1, keep_last=2, compute_dtype="fp32", backend="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The records: pairs of Scenes, pictures as codes of a tokenizer with random weights, texts as pieces."""
    rng, path = np.random.default_rng(), tmp_path_factory.mktemp("data") / "scenes.tfrecord"
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(NUM_SCENES)]
    pictures = np.stack([scenes.render(scene, rng) for scene in drawn])
    captions = [scenes.describe(scene, rng) for scene in drawn]
    side = pictures.shape[1]
    vqgan = VQGAN(VqganConfig(image_size=side, channels=8, channel_multipliers=(1,) * (side // 4).bit_length(),
                              num_res_blocks=1, latent_dim=4, codebook_size=40))  # fmt: skip
    with torch.no_grad():
        codes = vqgan.eval().tokenize(torch.from_numpy(pictures)).numpy()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece.train(captions, 100))
    with RecordWriter(str(path)) as writer:
        for image_ids, caption in zip(codes, captions, strict=True):
            ids = [*pieces.encode(caption)[: LENGTH - 1], 1]
            features = {"image_ids": image_ids, "text_ids": np.array(ids + [0] * (LENGTH - len(ids)))}
            writer.write(encode_example(features))
    return str(path)


def values_of(data, workdir, **changes):
    streams = {f"{stream}_data": data for stream in ("paired", "image", "text")}
    return SIZES | streams | {"workdir": str(workdir)} | changes


def life(values, environment, said):
    """One call of `python -m itit.train`, in a process of its own."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = open(said, "a", buffering=1)  # noqa: SIM115 (until the process ends)
    for number in (1, 2):
        os.dup2(sys.stdout.fileno(), number)
    torch.set_num_threads(1)
    try:
        sys.exit(train.run(replace(Config(), **values).resolve()))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def start(values, said, environment=None):
    process = multiprocessing.get_context("fork").Process(target=life, args=(values, environment or {}, said))
    process.start()
    return process


def train_to(end, values, said, environment=None):
    """Goes on to step `end`, and expects that this works."""
    done = store.latest_step(values["workdir"]) or 0
    process = start(values | {"stop_after_steps": end - done}, said, environment)
    process.join(600)
    assert process.exitcode == 0, said.read_text()[-2000:]
    assert store.latest_step(values["workdir"]) == end


def digest(workdir):
    """SHA-256 over all that the newest checkpoint holds."""
    step, tensors, _ = store.restore(str(workdir))
    found = hashlib.sha256(str(step).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------- kills


def unfinished(workdir):
    """What lies in the newest checkpoint, where that is not whole: a save is, or was, under way. Else None."""
    found = storage.list_dir(f"{workdir}/checkpoints")
    files = storage.list_dir(f"{workdir}/checkpoints/{found[-1]}") if found else []
    return None if not found or "commit.json" in files else (found[-1], files)


def wait_for(condition, process):
    while not condition():
        assert process.is_alive(), "ended by itself"
        time.sleep(0.0005)


def test_sigkill_of_real_training_at_random_moments(data, tmp_path):
    began, count, lives, in_save, lost = time.monotonic(), rounds(5), 0, 0, 0
    values, said = values_of(data, tmp_path / "killed"), tmp_path / "said"
    workdir, step, length = values["workdir"], 0, 5.0
    while lives < count or in_save < count // 5:
        assert lives < 20 * count, f"{in_save} of {lives} kills met a save"
        before, born, process = unfinished(workdir), time.monotonic(), start(values, said)
        if lives % 4 == 0:  # in the middle of a save, as soon as there is one after the first step
            wait_for(lambda step=step: (store.latest_step(workdir) or 0) > step, process)
            length = time.monotonic() - born
            wait_for(lambda: unfinished(workdir), process)
            time.sleep(random.uniform(0, 0.003))
        else:
            time.sleep(random.uniform(0, 1.5 * length))
        process.kill()
        process.join()
        lives += 1
        in_save += unfinished(workdir) not in (None, before)
        try:
            found = store.restore(workdir)
            lost += (found[0] if found else 0) < step
            step = found[0] if found else 0
        except ValueError as error:
            print(error)
            lost += 1
    assert lost == 0 and step > 0
    train_to(step + 3, values, said)
    whole = values_of(data, tmp_path / "whole", checkpoint_every=1000)
    train_to(step + 3, whole, said)
    assert digest(workdir) == digest(whole["workdir"])
    report("SIGKILL at random moments", lives, lost, began, f"{in_save} in mid-save, {step} steps, same final hash")


# ---------------------------------------------------------------------------------------------- every write in turn

CALLS = ("open", "fsync", "replace", "mkdir", "unlink", "rmdir", "rename")


class Failing:
    """Counts the calls to the system that a save makes: the one of a number fails, or ends the process."""

    def __init__(self, monkeypatch, number, dies):
        self.count, self.number, self.dies = 0, number, dies
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))
        opened = storage.builtins.open
        monkeypatch.setattr(storage.builtins, "open", lambda path, mode="r", *rest, **options: (
            self._file(opened, path) if mode == "wb" else opened(path, mode, *rest, **options)))  # fmt: skip

    def called(self):
        self.count += 1
        if self.count == self.number:
            if self.dies:
                os._exit(9)
            raise OSError(5, "Input/output error")

    def _wrapped(self, call):
        def wrapped(*args, **kwargs):
            self.called()
            return call(*args, **kwargs)

        return wrapped

    def _file(self, opened, path):
        self.called()
        file = opened(path, "wb", buffering=0)
        write = self._wrapped(lambda data: _in_halves(file, data, self))
        return _Written(file, write)


class _Written:
    """A file object that writes through a function."""

    def __init__(self, file, write):
        self._file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def _in_halves(file, data, failing):
    data = memoryview(data)
    file.write(data[: len(data) // 2])
    failing.called()
    file.write(data[len(data) // 2 :])


def save(workdir, step):
    store.save(str(workdir), step, store.whole(random_tensors(step)), {"step": step}, 1)


def assert_one_of(workdir, steps):
    """The newest checkpoint is whole, of one of these steps, and right. Returns its step."""
    step, tensors, meta = store.restore(str(workdir))
    assert step in steps and meta == {"step": step} and same(tensors, random_tensors(step))
    return step


def fail_in_save(workdir, number, dies):
    """Saves step 20 with the call of that number failing. Returns how many calls there were."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        failing = Failing(monkeypatch, number, dies)
        with contextlib.suppress(OSError):
            save(workdir, 20)
        return failing.count


@pytest.mark.parametrize("dies", [False, True])
def test_every_call_to_the_system_fails_in_turn(tmp_path, dies):
    began = time.monotonic()
    for number in itertools.count(1):
        workdir = tmp_path / str(number)
        save(workdir, 10)
        if dies:
            process = multiprocessing.get_context("fork").Process(target=fail_in_save, args=(workdir, number, True))
            process.start()
            process.join()
            met = process.exitcode == 9
            assert met or process.exitcode == 0
        else:
            met = fail_in_save(workdir, number, False) >= number
        step = assert_one_of(workdir, (10, 20))
        save(workdir, 30)
        assert assert_one_of(workdir, (30,)) == 30 and os.listdir(workdir / "checkpoints") == ["step_00000030"]
        if not met:
            break
    assert step == 20 and number > 15
    report(f"every system call of a save {'kills' if dies else 'fails'} in turn", number - 1, 0, began)


@pytest.mark.parametrize("dies", [False, True])
def test_every_request_to_a_bucket_fails_in_turn(gcs, dies):  # noqa: F811
    """Refused once; or from there on, as if the process had been killed."""
    began, stride = time.monotonic(), 1 if LONG else 5
    for number in itertools.count(random.randrange(stride), stride):
        workdir = f"gs://{BUCKET}/{dies}/{number}"
        save(workdir, 10)
        gcs.count, gcs.refused = 0, lambda k, number=number: k == number or dies and k > number
        with contextlib.suppress(OSError):
            save(workdir, 20)
        met, gcs.refused = gcs.count > number, lambda k: False
        step = assert_one_of(workdir, (10, 20))
        save(workdir, 30)
        assert assert_one_of(workdir, (30,)) == 30
        assert storage.list_dir(f"{workdir}/checkpoints") == ["step_00000030"]
        if not met:
            break
    assert step == 20 and number > 10
    report(f"every request of a save {'and all after it ' if dies else ''}refused in turn", number // stride, 0, began)


# ---------------------------------------------------------------------------------------------- weather


def test_weather_changes_the_time_and_not_the_result(data, tmp_path, monkeypatch):
    """Refused, broken and lost requests at several rates; ITIT_FAULT_ROUNDS steps, each saved."""
    steps, said = rounds(2), tmp_path / "said"
    shares = (0.01, 0.05, 0.2) if LONG else (0.15,)
    train_to(steps, values_of(data, tmp_path / "local"), said)
    expected, fair = digest(tmp_path / "local"), None
    for share in (0.0, *shares):
        with Weather(share) as weather:
            for name, value in weather.environment.items():
                monkeypatch.setenv(name, value)
            values, began = values_of(data, f"gs://{BUCKET}/run"), time.monotonic()
            first = max(1, steps // 2)
            for end in sorted({first, steps}):  # stopped once, so that it reads, too
                train_to(end, values, said, weather.environment)
            seconds, failed, asked = time.monotonic() - began, weather.num_failed, weather.count
            weather.share = 0.0
            assert digest(values["workdir"]) == expected
        fair = fair or seconds
        assert bool(failed) == bool(share) or share < 0.1
        note = f"{failed} of {asked} requests failed, {seconds - fair:+.0f} s, same final hash"
        report(f"weather at {share:.0%}", steps, 0, began, note)


# ---------------------------------------------------------------------------------------------- signals


def test_sigterm_loses_no_step(data, tmp_path):
    began, count, said = time.monotonic(), rounds(1), tmp_path / "said"
    values = values_of(data, tmp_path / "run", checkpoint_every=100_000)
    said.touch()
    for _ in range(count):
        size, process = said.stat().st_size, start(values, said)
        wait_for(lambda size=size: "| loss " in said.read_text()[size:], process)
        process.terminate()
        process.join(300)
        assert process.exitcode == 128 + signal.SIGTERM
        step = store.latest_step(values["workdir"])
        assert f"interrupted: saved step {step} in" in said.read_text().splitlines()[-1]
    whole = values_of(data, tmp_path / "whole", checkpoint_every=100_000)
    train_to(step, whole, said)
    assert digest(values["workdir"]) == digest(whole["workdir"])
    report("SIGTERM", count, 0, began, f"{step} steps, same final hash")


def catches(pid, number):
    """Whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status") as file:
        mask = next(line.split()[1] for line in file if line.startswith("SigCgt:"))
    return int(mask, 16) >> (number - 1) & 1


def never_saved(values, said):
    store.save = lambda *args, **kwargs: time.sleep(600)
    life(values, {}, said)


def test_a_second_signal_ends_a_run_at_once(data, tmp_path):
    said, values = tmp_path / "said", values_of(data, tmp_path / "run", checkpoint_every=100_000)
    said.touch()
    process = multiprocessing.get_context("fork").Process(target=never_saved, args=(values, said))
    process.start()
    wait_for(lambda: "| loss " in said.read_text(), process)
    process.terminate()
    wait_for(lambda: not catches(process.pid, signal.SIGTERM), process)  # the first one is noted
    process.join(2)
    assert process.exitcode is None  # it waits for the save
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


# ---------------------------------------------------------------------------------------------- hosts that hang


def test_a_stopped_host_is_left_by_the_others_with_their_stacks(data, tmp_path, capfd):
    began = time.monotonic()
    values = values_of(data, tmp_path, log_every=1, checkpoint_every=2, watchdog_seconds=4.0, embed_dim=64,
                       t2i2t_batch=4, i2t2i_batch=4)  # fmt: skip
    running = processes.start(host, 2, values, timeout=600)
    (first, _), (second, _) = running
    wait_for(lambda: (store.latest_step(str(tmp_path)) or 0) > 16, first)  # past the first steps of every kind
    os.kill(second.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        first.join(400)
    finally:
        second.kill()
    assert first.exitcode == 1
    said = capfd.readouterr().err
    assert "Timeout (" in said and "in gather" in said and "most recent call first" in said
    assert store.restore(str(tmp_path))[0] > 16
    report("a host stopped by SIGSTOP", 1, 0, began, f"out after {time.monotonic() - stopped:.0f} s, with stacks")
