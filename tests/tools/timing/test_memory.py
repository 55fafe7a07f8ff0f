"""tools.memory: what lives in a step, counted by hand where that can be done, and what must hold of any step."""

import math

import pytest
import torch

from itit.config import replace
from itit.program import Eager
from itit.tasks import only
from itit.train_step import tasks
from tests.helpers.tiny import make_config, make_state
from tools import memory as command
from tools.timing import memory

FLOAT = 4  # bytes


def blocks(*counts):
    return sum(math.ceil(count / 512) * 512 for count in counts)


def test_tensors_count_while_they_live_and_views_do_not():
    x = torch.empty(1000, device="meta")
    with memory._Live([x, x.view(10, 100)]) as live:
        assert live.now == blocks(1000 * FLOAT)
        y = x.exp()
        z = y[3:] * 2
        assert live.now == live.peak == blocks(1000 * FLOAT, 1000 * FLOAT, 997 * FLOAT)
        del y, z
        assert live.now == blocks(1000 * FLOAT)
        (x[:3] + 1).sum()
        assert live.now == blocks(1000 * FLOAT)
    assert live.peak == blocks(1000 * FLOAT, 1000 * FLOAT, 997 * FLOAT)


@pytest.mark.parametrize("rows, width", [(300, 40), (7, 900)])
def test_a_backward_pass_by_hand(rows, width):
    """relu(x w): its output is kept, for the product its input; then three gradients, never all at once."""
    x, w = (torch.empty(*size, device="meta", requires_grad=True) for size in ((rows, width), (width, width)))
    small, square = rows * width * FLOAT, width * width * FLOAT
    with memory._Live([x, w]) as live:
        y = (x @ w).relu()
        assert live.now == blocks(small, square, small)
        y.backward(torch.empty_like(y))
        # x, w, y, the gradient given and that before relu; then both gradients of the product.
        assert live.peak == blocks(small, square, small, small, small, small, square)
        assert live.now == blocks(small, square, small, small, square)


def test_a_step_keeps_what_a_state_has_and_its_peak_grows_evenly_with_its_rows():
    config = make_config(**only("i2t", "t2i2t"), ema_decay=0.9, dropout=0.1)
    state = make_state(config, 1)
    sizes = {n: dict.fromkeys(tasks(config, 0), n) for n in (8, 16, 24)}
    found = {n: memory.step_memory(config, active) for n, active in sizes.items()}
    assert found[8].model == blocks(*(p.nbytes for p in state.model.parameters()))
    assert found[8].state == blocks(*(t.nbytes for name, t in state.tensors().items() if not name.startswith("model/")))
    first, second = (found[n + 8].peak - found[n].peak for n in (8, 16))
    assert 0 < first == pytest.approx(second, rel=0.02)
    assert found[8].peak > 2 * found[8].model + found[8].state + found[8].text_encoder  # with a gradient of each weight
    less = memory.step_memory(replace(config, recompute_blocks=True), sizes[24])
    assert less[:3] == found[24][:3] and less.peak < found[24].peak


def test_all_tokens_of_a_text_take_what_two_do(monkeypatch):
    config = make_config(**only("i2t2i"))
    found = memory.step_memory(config, {"i2t2i": 4})
    monkeypatch.setattr(memory, "_FewTokens", Eager)
    assert found == memory.step_memory(config, {"i2t2i": 4})


def test_the_largest_batch_fits_and_one_more_does_not():
    config = make_config(**only("t2i"), num_microbatches=2)
    limit = command.measure(config, 20).peak + 1000
    count = command.largest(config, limit, first=2)
    assert command.measure(config, count).peak <= limit < command.measure(config, count + 2).peak
    assert count % 2 == 0 and command.largest(config, 1000, first=2) == 0
