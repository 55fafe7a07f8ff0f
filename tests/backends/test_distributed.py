"""Several processes, as torchrun starts them, against one: draws, losses, gradients, weights, and what they save."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from itit import samples, train
from itit.backends.connect import connect
from itit.backends.processes import launched
from itit.checkpoint import store
from itit.config import Config, replace
from itit.data.streams import Streams
from itit.models.layers import Dropout
from itit.noise import Noise
from itit.tasks import TASKS
from itit.train_step import tasks, train_step
from itit.training import evaluation
from tests.helpers import processes
from tests.helpers.backend_parity import Gradients, config_of
from tests.helpers.tiny import make_state, random_batch, seeds
from tests.training.test_train import curves, run_here, settings, write_ids
from tests.training.test_train import data as scenes  # noqa: F401

SIZES = dict(ema_decay=0.9, num_steps=5, checkpoint_every=1, keep_last=9, t2i2t_warmup_steps=0, i2t2i_warmup_steps=2,
             t2i_text_drop_prob=0.3, **{f"{task}_batch": 8 for task in TASKS})  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_ids(folder / "ids.tfrecord", 96)
    return folder


# ---------------------------------------------------------------------------------------------- rows and draws


@pytest.mark.parametrize("count", [2, 4])
def test_draws_belong_to_rows(count):
    seed, rate = seeds(1)[0], 0.3
    whole = Noise(seed, 3, "cpu", 1)
    shares = [Noise(seed, 3, "cpu", 1, share=(index, count)) for index in range(count)]
    for shape in ((8, 5), (8, 2, 40, 33), (8,)):
        found = [noise("x", (8 // count, *shape[1:])) for noise in shares]
        assert torch.equal(torch.cat(found), whole("x", shape))
    assert all(noise("ratio", ()) == whole("ratio", ()) for noise in shares)  # the batch's, not a row's
    layers = torch.nn.Sequential(Dropout(rate), Dropout(0.7))
    x = torch.randn(8, 40, 33)
    whole.start_dropout(layers)
    expected = [F.dropout(x, rate), F.dropout(x, 0.7), F.dropout(x, rate)]
    for index, noise in enumerate(shares):
        noise.start_dropout(layers)
        part = x.chunk(count)[index]
        for layer, wanted in zip((0, 1, 0), expected, strict=True):
            torch.testing.assert_close(layers[layer](part), wanted.chunk(count)[index])


def test_a_process_has_its_share_of_each_microbatch(data):
    config = replace(Config(), **settings(data, **SIZES, num_microbatches=2)).resolve()
    whole, parts = Streams(config).rows(3), [Streams(config, index, 2, 2).rows(3) for index in range(2)]
    for task, rows in whole.items():
        first, second = (part[task].reshape(2, -1) for part in parts)
        assert np.concatenate([first[0], second[0], first[1], second[1]]).tolist() == rows.tolist()


# ---------------------------------------------------------------------------------------------- a step


def losses_and_gradients(config, seed):
    """Of two steps: metrics, and this process's gradients."""
    with launched(config.train) as started:
        backend = connect(config.train, started)
        if started:
            backend.across._bucket_bytes = 3000  # many, full and not
        index, count, parts = backend.hosts.index, backend.hosts.count, config.optim.num_microbatches
        state, found = make_state(config, seed), []
        optimizer = Gradients(state.model.named_parameters(), config.optim)
        state = state._replace(optimizer=optimizer, across=backend.across)
        backend.place_state(state)
        for step in range(2):
            batch = {name: value.view(parts, count, -1, *value.shape[1:])[:, index].flatten(0, 1).numpy()
                     for name, value in random_batch(config, 100 + step).items()}  # fmt: skip
            noises = [backend.noise(5, step, part) for part in range(parts)]
            active = tasks(config, step)
            values = train_step(state, backend.to_device(batch), noises, 1e-3, config, active)
            numbers = {name: value.item() for name, value in values.items()}
            found.append((numbers, {name: g.numpy().copy() for name, g in state.optimizer.found.items()}))
        backend.hosts.close()
    return found


@pytest.mark.parametrize("count, changes", [(2, {}), (4, {"num_microbatches": 2, "mask_ratio_per": "batch"})])
@pytest.mark.parametrize("seed", seeds(1))
def test_losses_and_gradients_equal_those_of_one_process(count, changes, seed):
    config = config_of(t2i_text_drop_prob=0.3, image_loss_mean="sample", backend="cpu", **changes)
    expected = losses_and_gradients(config, seed)
    for found in processes.results(processes.launch(losses_and_gradients, count, config, seed)):
        assert not isinstance(found, Exception), found
        for (values, gradients), (wanted, true) in zip(found, expected, strict=True):
            assert values.keys() == wanted.keys() and len(wanted) == 10
            assert all(abs(values[name] - wanted[name]) <= 1e-5 * abs(wanted[name]) for name in wanted)
            whole = max(float(np.abs(g).max()) for g in true.values())
            for name, gradient in true.items():  # keys of attention have bias gradients of zero, which rounding fills
                scale = whole if "qkv.bias" in name else np.abs(gradient).max() + 1e-30
                assert np.abs(gradients[name] - gradient).max() < 1e-5 * scale, name


# ---------------------------------------------------------------------------------------------- a run


def run(values, poisoned=()):
    """`itit.train`. In `poisoned` steps (from 1) a gradient of the last process alone is not finite."""
    calls = []

    def hook(grad):
        calls.append(1)
        return grad * torch.nan if len(calls) in poisoned else grad

    make_state = train.make_state

    def hooked(config, backend):
        state = make_state(config, backend)
        if backend.hosts.index == backend.hosts.count - 1:
            state.model.text_decoder.head.bias.register_hook(hook)
        return state

    train.make_state = hooked
    try:
        return run_here(values)
    finally:
        train.make_state = make_state


def launch(count, values, *rest):
    return [code.code if isinstance(code, SystemExit) else code
            for code in processes.results(processes.launch(run, count, dict(values), *rest))]  # fmt: skip


def assert_near(workdir, other, steps):
    """The same tensors but for rounding. Left out are biases of attention: those of keys have no gradient, and
    Adafactor makes whole updates of what rounding fills it with. Biases begin at zero: so far they are updates alone.
    """
    for step in steps:
        (_, tensors, _), (_, expected, _) = (store.restore(str(path), step=step) for path in (workdir, other))
        assert tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            if name.startswith(("model/", "ema/")) and "qkv.bias" not in name:
                apart = float((tensors[name] - tensor).norm() / tensor.norm())
                assert apart < (2e-4 if name.endswith("bias") else 1e-5), (step, name, apart)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    values = settings(data, **SIZES, num_microbatches=2, workdir=str(tmp_path_factory.mktemp("alone")))
    assert run(values, (3,)) == 0
    assert store.restore(values["workdir"])[1]["optimizer/count"] == 4  # one update was skipped
    return values["workdir"]


@pytest.mark.parametrize("count, shard_state", [(2, False), (2, True), (4, False)])
def test_a_run_of_several_processes_is_that_of_one(data, tmp_path, alone, count, shard_state):
    """Five steps, one of them skipped, weights and averages."""
    values = settings(data, **SIZES, num_microbatches=2, workdir=str(tmp_path), shard_state=shard_state,
                      shard_text_encoder=shard_state)  # fmt: skip
    assert launch(count, values, (3,)) == [0] * count
    assert_near(tmp_path, alone, range(1, 6))


def test_what_some_processes_saved_others_continue(data, tmp_path, alone):
    """4 processes with a state in parts, then 1, then 2, each from where those before stopped."""
    values = settings(data, **SIZES, num_microbatches=2, workdir=str(tmp_path), stop_after_steps=2)
    assert launch(4, values | {"shard_state": True}, (3,)) == [0] * 4
    assert len(list(tmp_path.glob("checkpoints/step_00000002/state-*-of-00004-*"))) == 4
    assert run(values | {"stop_after_steps": 1}) == 0
    assert launch(2, values) == [0] * 2
    assert_near(tmp_path, alone, [5])


def kept(config):
    """Numbers of the optimizer and the averages that this process keeps, of the averages that it can look at."""
    with launched(config.train) as started:
        backend = connect(config.train, started)
        state = make_state(config, 1)
        backend.place_state(state)
        with torch.no_grad():  # told apart from those that others have
            for name, tensor in state.ema.average.items():
                tensor.fill_(len(name))
        own = {"optimizer": state.optimizer.state(), "averages": state.ema.state()}
        with state.averaged():
            right = all(bool((p == len(name)).all()) for name, p in state.model.named_parameters())
        backend.hosts.close()
        return {kind: sum(t.numel() for t in tensors.values()) for kind, tensors in own.items()}, right


def test_a_state_in_parts_is_kept_once_and_its_averages_can_be_looked_at():
    config = config_of(ema_decay=0.9, backend="cpu", shard_state=True)
    whole, right = kept(config)
    found = processes.results(processes.launch(kept, 3, config))
    assert right and all(right for _, right in found)
    for kind, numbers in whole.items():
        parts = [own[kind] for own, _ in found]
        assert sum(parts) == numbers + 2 * (kind == "optimizer")  # the count of updates is everywhere
        assert max(parts) < 0.45 * numbers


def test_samples_and_scores_are_those_of_one_process(scenes, tmp_path):  # noqa: F811
    """Of the untrained model to the last bit: pictures, captions, losses and CIDEr, by batches of few samples."""
    values = settings(
        scenes, vocabulary=str(scenes / "words.model"), vqgan=str(scenes / "vqgan"), sample_every=1, num_samples=5,
        eval_every=1, num_eval=7, num_steps=2, keep_best="CIDEr", ema_decay=0.9,
    )  # fmt: skip
    found = []
    for name, changes in (("one", None), ("two", {}), ("parts", {"shard_text_encoder": True})):
        given = values | {"workdir": str(tmp_path / name)}
        assert (launch_in_parts(2, given | changes) if changes is not None else [run_in_parts(given)] * 2) == [0, 0]
        assert store.latest_step(str(tmp_path / name / "best")) is not None
        events = curves(tmp_path / name)
        tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("eval/")]
        pictures = {tag: [x.encoded_image_string for x in events.Images(tag)] for tag in events.Tags()["images"]}
        found.append(({tag: events.Scalars(tag)[0].value for tag in tags}, pictures))
    scores, pictures = found[0]
    assert found[1:] == [found[0]] * 2 and len(scores) == len(pictures) == 4
    assert all(map(len, pictures.values()))


def run_in_parts(values):
    """`itit.train` that draws and scores 2 samples at once."""
    evaluation.CHUNK, defaults = 2, samples.Translator.__init__.__defaults__
    samples.Translator.__init__.__defaults__ = (2,)
    try:
        return run(values)
    finally:
        evaluation.CHUNK, samples.Translator.__init__.__defaults__ = 64, defaults


def launch_in_parts(count, values):
    return processes.results(processes.launch(run_in_parts, count, values))
