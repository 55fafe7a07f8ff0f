"""Keeping, restoring and looking up tokens: gathers and products with one-hot matrices alike, against loops."""

import pytest
import torch

from itit import tokens
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


@pytest.fixture(params=["gather", "product"])
def way(request, monkeypatch):
    """Both ways run on every device; XLA takes the second."""
    if request.param == "product":
        monkeypatch.setattr(tokens, "on_xla", lambda x: True)
    return request.param


def test_take_and_put_equal_loops(way):
    batch, num_tokens, kept, dim = 3, 9, 4, 5
    index = torch.stack([torch.randperm(num_tokens)[:kept] for _ in range(batch)])
    flat = {
        torch.float32: torch.randn(batch, num_tokens),
        torch.int64: torch.randint(2**40, (batch, num_tokens)),
        torch.bool: torch.rand(batch, num_tokens) < 0.5,
    }
    deep, few = torch.randn(batch, num_tokens, dim), torch.randn(batch, kept, dim)
    taken, put = tokens.take_tokens(deep, index), tokens.put_tokens(few, index, num_tokens)
    expected = torch.zeros(batch, num_tokens, dim)
    for b in range(batch):
        for k in range(kept):
            for dtype, x in flat.items():
                found = tokens.take_tokens(x, index)
                assert found.dtype == dtype and found[b, k] == x[b, index[b, k]]
            assert torch.equal(taken[b, k], deep[b, index[b, k]])
            expected[b, index[b, k]] = few[b, k]
    assert torch.equal(put, expected)


def test_pick_equals_loops(way):
    x, index = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    found = tokens.pick(x, index)
    assert all(found[i, j] == x[i, j, index[i, j]] for i in range(3) for j in range(4))


def test_argmax_is_the_first_largest(way):
    for size in (1, 7, 128, 129, 400):
        x = torch.randint(6, (5, 3, size)).float()  # many ties
        x[0, 0] = -torch.inf
        found = tokens.argmax(x)
        assert found.dtype == torch.int64
        for i in range(5):
            for j in range(3):
                assert found[i, j] == x[i, j].tolist().index(x[i, j].max())


def test_lookup_and_its_gradient_equal_loops(way):
    table = torch.randn(6, 5, requires_grad=True)
    ids, weights = torch.randint(6, (4, 3)), torch.randn(4, 3, 5)
    rows = tokens.lookup(table, ids)
    (grad,) = torch.autograd.grad((rows * weights).sum(), table)
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            assert torch.equal(rows[i, j], table[ids[i, j]])
            expected[ids[i, j]] += weights[i, j].double()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tokens.add_rows(weights, ids, 6, torch.float32), grad)


def test_a_lookups_gradient_goes_by_way_of_the_cast_where_it_is_a_product(monkeypatch):
    """The rows are the table's own all the same."""
    monkeypatch.setattr(tokens, "on_xla", lambda x: True)
    table, ids, weights = torch.randn(6, 5, requires_grad=True), torch.randint(6, (7,)), torch.randn(7, 5)
    cast = table.to(torch.bfloat16)
    rows = tokens.lookup(table, ids, cast)
    assert torch.equal(rows, table[ids])
    to_cast, to_table = torch.autograd.grad((rows * weights).sum(), [cast, table])
    expected = torch.nn.functional.one_hot(ids, 6).T.float() @ weights.bfloat16().float()
    torch.testing.assert_close(to_cast, expected.bfloat16())
    assert torch.equal(to_table, to_cast.float()) and to_table.dtype == torch.float32
