"""A step as a CUDA graph, with a stand-in for CUDA's recording: what is replayed equals the step as it stands.

The stand-in computes again what was recorded, on what lies in the recording's own inputs. With a real GPU: test_gpu.py.
"""

import contextlib
import types

import pytest
import torch
from torch.utils._pytree import tree_leaves

from itit.backends import cuda_graphs
from itit.backends.cuda_graphs import MAX_MOVES, RepeatedNoise
from itit.backends.local import Local
from itit.samples import Translator
from itit.train_step import tasks, train_step
from tests.helpers.tiny import make_config, make_state, random_batch, seeds


class Recorder:
    """Stands where torch.cuda records, and counts. Recording computes nothing: it is undone."""

    def __init__(self):
        self.num_recorded = self.num_replayed = 0
        self.state = self.recording = None  # what is undone; what is being recorded

    @contextlib.contextmanager
    def record(self, graph, pool, capture_error_mode):
        assert graph.recording is self.recording and capture_error_mode == "thread_local"
        before = {tensor: tensor.detach().clone() for tensor in self.state.tensors().values()}
        seed, draws = torch.initial_seed(), torch.get_rng_state()
        yield
        assert torch.initial_seed() == seed, "set while recording"
        torch.set_rng_state(draws)
        for tensor, value in before.items():
            tensor.data.copy_(value)
        self.num_recorded += 1


class FakeGraph:
    def __init__(self, recorder):
        self.recorder, self.recording, self.generators = recorder, recorder.recording, []

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        self.recorder.num_replayed += 1
        for noise in self.recording.inputs:
            if isinstance(noise, RepeatedNoise):
                noise.restart(noise)
        found, held = (tree_leaves(tree) for tree in (self.recording.run(self.recording.inputs), self.recording.result))
        for target, value in zip(held, found, strict=True):
            target.copy_(value)


@pytest.fixture
def recorder(monkeypatch):
    recorder, real = Recorder(), cuda_graphs._Recording.record

    def record(recording):
        recorder.recording = recording
        real(recording)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(recorder))
    monkeypatch.setattr(torch.cuda, "graph", recorder.record)
    monkeypatch.setattr(cuda_graphs._Recording, "record", record)
    return recorder


def run(backend, state, config, number, recorder=None):
    """Metrics of a step with a batch and a rate of its own."""
    noises = [backend.noise(5, number, part) for part in range(config.optim.num_microbatches)]
    batch, rate = random_batch(config, 100 + number), 1e-3 * (number + 1)
    if recorder is not None:
        recorder.state = state
    return backend.whole(train_step, state, batch, noises, rate, config, tasks(config, number))


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("flags", [dict(dropout=0.1), dict(num_microbatches=2, dropout=0.1)],
                         ids=["dropout", "microbatches"])  # fmt: skip
def test_replayed_steps_equal_those_as_they_stand(recorder, flags, seed):
    """The cycles join on the way: another kind of step. Changing batches, draws and rates; averages; skipped spikes."""
    config = make_config(**flags, t2i2t_warmup_steps=4, i2t2i_warmup_steps=4, ema_decay=0.9, skip_spikes=5.0)
    plain, replayed = Local("cpu"), Local("cpu", graphs=True)
    expected, state = make_state(config, seed), make_state(config, seed)
    kept = []
    for number in range(8):
        values, found = run(plain, expected, config, number), run(replayed, state, config, number, recorder)
        assert values.keys() == found.keys()
        kept.append((values, found))
    assert recorder.num_recorded == 2 and recorder.num_replayed == 6
    for values, found in kept:  # later steps leave what was returned alone
        assert {n: float(v) for n, v in values.items()} == {n: float(v) for n, v in found.items()}
    assert len({float(values["loss"]) for values, _ in kept}) == 8
    for name, tensor in expected.tensors().items():
        assert torch.equal(tensor, state.tensors()[name]), name


@pytest.mark.parametrize("seed", seeds(1))
def test_generation(recorder, seed):
    """Each row draws by its own number, whichever it was recorded with; other weights are recorded for themselves."""
    config = make_config(num_decode_steps=3, ema_decay=0.9)
    plain, replayed = Local("cpu"), Local("cpu", graphs=True)
    state = make_state(config, seed)
    texts = random_batch(config, seed)["i2t/text_ids"]
    recorder.state, pictures = state, []
    for number in range(4):
        rows = [7 + number, number, 2, 3]
        ours, theirs = (Translator(state, config, backend, step=number) for backend in (plain, replayed))
        pictures.append(ours.pictures(texts, "a", rows))
        assert torch.equal(theirs.pictures(texts, "a", rows), pictures[-1])
    assert (recorder.num_recorded, recorder.num_replayed) == (1, 3)
    assert not any(torch.equal(pictures[0], other) for other in pictures[1:])
    for images in pictures:
        for greedy in (False, True):
            assert torch.equal(theirs.captions(images, greedy), ours.captions(images, greedy))
    with torch.no_grad():
        for average in state.ema.average.values():
            average.normal_()
    with state.averaged():
        assert torch.equal(theirs.pictures(texts, "a", rows), ours.pictures(texts, "a", rows))
        assert not torch.equal(theirs.pictures(texts, "a", rows), pictures[-1])
    assert torch.equal(theirs.pictures(texts, "a", rows), pictures[-1])


def test_every_draw_is_registered_and_none_other_allowed(recorder):
    config, backend = make_config(), Local("cpu", graphs=True)
    state = make_state(config, 1)
    for number in range(2):
        run(backend, state, config, number, recorder)
    (noise,) = (x for x in recorder.recording.inputs if isinstance(x, RepeatedNoise))
    registered = recorder.recording.graph.generators
    assert registered == noise.generators and len(registered) > 10
    noise.restart(backend.noise(1, 2))
    with pytest.raises(AssertionError, match="draws other where it drew "):
        noise("other", (2,))


def test_the_oldest_recordings_go_first(recorder, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_KEPT", 2)
    backend, recorder.state = Local("cpu", graphs=True), types.SimpleNamespace(tensors=dict)
    seen = []

    def add(x, kind):
        return {kind: x + 1}

    for kind in "aabbacabb":  # b goes when c comes
        x = torch.rand(2)
        found = backend.whole(add, x, kind)
        seen.append((recorder.num_recorded, recorder.num_replayed))
        assert found.keys() == {kind} and torch.equal(found[kind], x + 1)
    assert seen == [(0, 0), (1, 1), (1, 1), (2, 2), (2, 3), (2, 3), (2, 4), (2, 4), (3, 5)]


def test_no_rows(recorder):
    backend, recorder.state = Local("cpu", graphs=True), types.SimpleNamespace(tensors=dict)

    def draw(x, noise):
        return x + noise("a", x.shape)

    for _ in range(3):
        assert backend.whole(draw, torch.zeros(0, 3), backend.noise(1, 2, rows=[])).shape == (0, 3)


def test_weights_that_move_at_every_call_are_an_error(recorder):
    config, backend = make_config(), Local("cpu", graphs=True)
    state, kept = make_state(config, 1), []
    with pytest.raises(AssertionError, match="train_step: weights have moved"):
        for number in range(9):
            run(backend, state, config, number, recorder)
            parameter = next(state.model.parameters())
            kept.append(parameter.data)
            parameter.data = parameter.data.clone()
    assert len(kept) == MAX_MOVES
