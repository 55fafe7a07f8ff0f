"""Adam against torch's own."""

import pytest
import torch

from tests.helpers.tiny import seeds
from tools.training.adam import Adam


@pytest.mark.parametrize("seed", seeds(2))
def test_it_equals_torch(seed):
    torch.manual_seed(seed)
    shapes = {"a": (3, 5), "b": (7,), "frozen": (2,)}
    mine = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    mine["frozen"].requires_grad_(False)
    theirs = [torch.nn.Parameter(mine[name].detach().clone()) for name in ("a", "b")]
    optimizer, reference = Adam(mine.items(), 0.5, 0.99), torch.optim.Adam(theirs, betas=(0.5, 0.99))
    frozen = mine["frozen"].clone()
    for step in range(6):
        gradients = [torch.randn(p.shape) * 10.0 ** (step - 3) for p in theirs]
        rate = 0.1 / (step + 1)
        reference.param_groups[0]["lr"] = rate
        for p, gradient in zip(theirs, gradients, strict=True):
            p.grad = gradient
        reference.step()
        optimizer.step(gradients, optimizer.factors(rate, step + 1))
        for name, p in zip(("a", "b"), theirs, strict=True):
            torch.testing.assert_close(mine[name], p, rtol=1e-6, atol=1e-7)
    assert torch.equal(mine["frozen"], frozen)
    assert set(optimizer.state()) == {"moment/a", "moment/b", "square/a", "square/b"}


def test_gradients_are_zero_where_a_parameter_has_no_part():
    used, unused = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(2))
    optimizer = Adam([("used", used), ("unused", unused)], 0.9, 0.99)
    found = optimizer.gradients((used * 2).sum())
    assert torch.equal(found[0], torch.full((3,), 2.0)) and torch.equal(found[1], torch.zeros(2))
    assert used.grad is None
