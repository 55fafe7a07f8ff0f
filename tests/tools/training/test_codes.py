"""Running means of the codebook against NumPy, and the revival of dead codes on cases made by hand."""

import numpy as np
import pytest
import torch

from tests.helpers.tiny import seeds
from tools.training import codes


def test_averages_follow_numpy():
    table = torch.randn(24, 6)
    averages, before = codes.CodeAverages(table), table.clone()
    count, total = np.zeros(24), np.zeros((24, 6))
    signs = torch.randn(6).sign()  # of each column: where outputs cancel, float32 keeps nothing of their mean
    for _ in range(3):
        outputs, ids = signs * torch.randn(40, 6).abs(), torch.randint(0, 20, (40,))
        used = averages.update(table, outputs, ids)
        assert used == len(set(ids.tolist()))
        for code in range(24):
            mine = outputs[ids == code].numpy()
            count[code] = 0.99 * count[code] + 0.01 * len(mine)
            total[code] = 0.99 * total[code] + 0.01 * mine.sum(0)
    used = count > 0
    np.testing.assert_allclose(table.numpy()[used], total[used] / count[used, None], rtol=1e-5)
    assert torch.equal(table[20:], before[20:])
    assert set(codes.dead(averages.count).tolist()) == set(np.flatnonzero(~used))
    share = count[used] / count.sum()
    assert averages.perplexity().item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_the_running_mean_minimises_the_codebook_term():
    """Where every output keeps its code, the table goes to the minimum of |sg(output) - code|^2."""
    table = torch.zeros(2, 3)
    averages, outputs, ids = codes.CodeAverages(table), torch.randn(10, 3), torch.tensor([0] * 4 + [1] * 6)
    for _ in range(3):
        averages.update(table, outputs, ids)
    leaf = table.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((outputs - leaf[ids]).square().mean(), leaf)
    assert gradient.abs().max() < 1e-6


def test_a_dead_code_moves_to_the_output_that_is_rounded_worst():
    """Codes 0 and 1 sit on the common outputs; 2 has died; one output lies far from all of them."""
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 9.0]])
    count, total = torch.tensor([10.0, 10.0, 0.1]), torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.9, 0.9]])
    outputs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    rows = codes.dead(count)
    assert rows.tolist() == [2]
    codes.draw(outputs, rows, table, count, total, torch.Generator().manual_seed(0))
    assert table.tolist() == [[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]
    weight = codes.DEAD_SHARE * 4 / 3
    assert count.tolist() == pytest.approx([10.0, 10.0, weight])
    assert total[2].tolist() == pytest.approx([0.0, 5.0 * weight])


@pytest.mark.parametrize("seed", seeds(1))
def test_new_codes_lie_on_outputs_that_no_code_is_near(seed):
    torch.manual_seed(seed)
    common, rare = torch.randn(6), torch.randn(3, 6) * 5
    outputs = torch.cat([common.repeat(500, 1), rare])
    table = common.repeat(24, 1)
    rows = torch.tensor([2, 7, 11])
    codes.draw(outputs, rows, table, torch.zeros(24), torch.zeros(24, 6), torch.Generator().manual_seed(1))
    assert {tuple(row) for row in table[rows].tolist()} == {tuple(row) for row in rare.tolist()}
    assert torch.equal(table[3], common)


def test_of_many_outputs_some_are_candidates(monkeypatch):
    monkeypatch.setattr(codes, "MAX_CANDIDATES", 4)
    outputs, table = torch.arange(10.0)[:, None], torch.zeros(4, 1)
    codes.draw(outputs, torch.arange(4), table, torch.zeros(4), torch.zeros(4, 1), torch.Generator().manual_seed(0))
    assert sorted(table[:, 0].tolist()) == [0.0, 3.0, 6.0, 9.0]
