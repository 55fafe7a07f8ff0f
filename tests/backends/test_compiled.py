"""--compile: steps and texts are those of plain torch, in whole graphs; inductor's own code; where it does not work."""

import pytest
import torch

from itit import inference
from itit.backends.connect import connect
from itit.config import TrainConfig
from itit.models.layers import Block, recompute_blocks
from itit.program import running
from itit.tasks import only
from itit.train_step import tasks, train_step
from tests.helpers.tiny import make_config, make_state, random_batch, random_images, seeds


def step_and_texts(config, seed, backend):
    """A training step, then beams of the weights that it leaves: metrics, weights, texts, scores."""
    state = make_state(config, seed)
    for part in (state.model, state.t5):
        backend.adopt(part)
    if config.train.recompute_blocks:
        recompute_blocks(state.model)
    with running(backend.run):
        values = train_step(state, random_batch(config, seed), [backend.noise(5, 0)], 1e-3, config, tasks(config, 0))
    ids = random_images(2, config, torch.Generator().manual_seed(seed))
    with running(backend.sampler):
        texts, scores = inference.caption_beam(state.model, ids, state.empty_text(), config.decode)
    return {name: value.item() for name, value in values.items()}, list(state.model.parameters()), texts, scores


@pytest.fixture
def traced(monkeypatch):
    """What is compiled is traced and differentiated by the compiler, and run by torch: quickly there."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, options: compile(function, backend="aot_eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("task, changes", [("i2t2i", {"dropout": 0.2}), ("t2i2t", {"recompute_blocks": True})])
@pytest.mark.parametrize("seed", seeds(1))
def test_a_step_is_that_of_plain_torch_and_breaks_nowhere(traced, task, changes, seed):
    config = make_config(**only(task), depth=1, text_decoder_depth=1, num_decode_steps=2, **changes)
    plain, compiled = (step_and_texts(config, seed, connect(TrainConfig(backend="cpu", compile=compile)))
                       for compile in (False, True))  # fmt: skip
    assert plain[0] == pytest.approx(compiled[0], rel=1e-6)
    for weight, wanted in zip(compiled[1], plain[1], strict=True):
        torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(compiled[2], plain[2])
    torch.testing.assert_close(compiled[3], plain[3])
    counters = torch._dynamo.utils.counters
    assert counters["frames"]["ok"] > 4 and not counters["graph_break"]


@pytest.mark.parametrize("seed", seeds(1))
def test_inductors_code_of_a_block(seed):
    """Gradients and dropout as well: it draws the same."""
    torch.manual_seed(seed)
    plain, compiled = Block(16, 2, 2.0, 0.3), Block(16, 2, 2.0, 0.3)
    compiled.load_state_dict(plain.state_dict())
    connect(TrainConfig(backend="cpu", compile=True)).adopt(torch.nn.ModuleList([compiled]))
    x, found = torch.randn(2, 5, 16), []
    for block in (plain, compiled):
        given = x.clone().requires_grad_()
        torch.manual_seed(seed)
        y = block(given)
        y.square().sum().backward()
        found.append([y, given.grad, *(p.grad for p in block.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.equal(plain(x), plain(x))  # something was dropped


def test_without_a_compiler_in_one_line(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/c++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(ValueError, match="^--compile: torch.compile does not work here on cpu: .*nowhere/c[+][+].*$"):
        connect(TrainConfig(backend="cpu", compile=True))
