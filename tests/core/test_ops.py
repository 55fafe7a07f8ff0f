"""Operations in the forms of processors and of XLA, against loops, torch and SciPy; and who computes which form."""

import subprocess
import sys

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from itit import ops
from itit.models import layers
from tests.helpers.common import ROOT
from tests.helpers.small import fresh_seed, use_forms  # noqa: F401 (a fixture)


def test_the_device_of_the_first_argument_decides(monkeypatch):
    @ops.op
    def double(x, times=2):
        """Text."""
        return x * times

    monkeypatch.setattr(ops, "FORMS", {})

    @ops.form(double, "meta")
    def of_meta(x, times=2):
        return x.new_empty(times)

    assert double(torch.ones(3)).tolist() == [2.0] * 3 and double(torch.ones(3), times=3).tolist() == [3.0] * 3
    assert double(torch.ones(3, device="meta"), times=5).shape == (5,)
    assert double.__doc__ == "Text." and double.__name__ == "double"


@pytest.mark.parametrize("device, needs", [("cuda", "torch"), ("xla", "torch_xla")])
def test_forms_are_there_when_the_first_tensor_of_a_device_is_met(device, needs):
    """Whoever makes it, and whatever has been imported; and where there is none, nothing is imported."""
    pytest.importorskip(needs)
    code = f"""
import sys
import torch
from itit import ops

class There(torch.Tensor):
    device = torch.device("{device}")

ops.at_hand(torch.ones(1)), ops.gelu(torch.ones(1))
assert not ops.FORMS and "{ops.MODULES[device]}" not in sys.modules
try:
    ops.attend(*[torch.ones(1, 1, 1, 4).as_subclass(There)] * 3, None)
finally:
    assert (ops.attend, "{device}") in ops.FORMS
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_form_has_the_arguments_of_its_operation(monkeypatch):
    """By name and in order: callers know the plain form alone."""
    for device in ops.MODULES:
        use_forms(monkeypatch, device)
    assert len(ops.FORMS) > 10
    for (operation, _), form in ops.FORMS.items():
        plain = operation.__wrapped__.__code__
        names = [code.co_varnames[: code.co_argcount] for code in (plain, form.__code__)]
        assert names[0] == names[1] and operation.__wrapped__.__defaults__ == form.__defaults__, form


def test_take_and_put_equal_loops(way):
    batch, num_tokens, kept, dim = 3, 9, 4, 5
    index = torch.stack([torch.randperm(num_tokens)[:kept] for _ in range(batch)])
    flat = {
        torch.float32: torch.randn(batch, num_tokens),
        torch.int64: torch.randint(2**40, (batch, num_tokens)),
        torch.bool: torch.rand(batch, num_tokens) < 0.5,
    }
    deep, few = torch.randn(batch, num_tokens, dim), torch.randn(batch, kept, dim)
    taken, put = ops.take_tokens(deep, index), ops.put_tokens(few, index, num_tokens)
    expected = torch.zeros(batch, num_tokens, dim)
    for b in range(batch):
        for k in range(kept):
            for dtype, x in flat.items():
                found = ops.take_tokens(x, index)
                assert found.dtype == dtype and found[b, k] == x[b, index[b, k]]
            assert torch.equal(taken[b, k], deep[b, index[b, k]])
            expected[b, index[b, k]] = few[b, k]
    assert torch.equal(put, expected)


def test_pick_equals_loops(way):
    x, index = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    found = ops.pick(x, index)
    assert all(found[i, j] == x[i, j, index[i, j]] for i in range(3) for j in range(4))


def test_argmax_is_the_first_largest(way):
    for size in (1, 7, 128, 129, 400):
        x = torch.randint(6, (5, 3, size)).float()  # many ties
        x[0, 0] = -torch.inf
        found = ops.argmax(x)
        assert found.dtype == torch.int64
        for i in range(5):
            for j in range(3):
                assert found[i, j] == x[i, j].tolist().index(x[i, j].max())


def test_lookup_and_its_gradient_equal_loops(way):
    table = torch.randn(6, 5, requires_grad=True)
    ids, weights = torch.randint(6, (4, 3)), torch.randn(4, 3, 5)
    rows = ops.lookup(table, ids)
    (grad,) = torch.autograd.grad((rows * weights).sum(), table)
    expected = torch.zeros(6, 5, dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            assert torch.equal(rows[i, j], table[ids[i, j]])
            expected[ids[i, j]] += weights[i, j].double()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ops.add_rows(weights, ids, 6, torch.float32), grad)


def test_a_lookups_gradient_goes_by_way_of_the_cast_where_it_is_a_product(monkeypatch):
    """The rows are the table's own all the same."""
    use_forms(monkeypatch)
    table, ids, weights = torch.randn(6, 5, requires_grad=True), torch.randint(6, (7,)), torch.randn(7, 5)
    cast = table.to(torch.bfloat16)
    rows = ops.lookup(table, ids, cast)
    assert torch.equal(rows, table[ids])
    to_cast, to_table = torch.autograd.grad((rows * weights).sum(), [cast, table])
    expected = torch.nn.functional.one_hot(ids, 6).T.float() @ weights.bfloat16().float()
    torch.testing.assert_close(to_cast, expected.bfloat16())
    assert torch.equal(to_table, to_cast.float()) and to_table.dtype == torch.float32


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_map_and_its_gradients_equal_torchs(shape, bias, way):
    x, weight = torch.randn(*shape, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    added = torch.randn(6, requires_grad=True) if bias else None
    inputs, results = [t for t in (x, weight, added) if t is not None], []
    out = torch.randn(*shape, 6)
    for function in (ops.linear, F.linear):
        y = function(x, weight, added)
        results.append([y, *torch.autograd.grad((y * out).sum(), inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)


def test_gelu_is_the_normal_distributions(way):
    x = torch.cat([torch.randn(20_000) * scale for scale in (1, 3, 30, 1e4)])
    exact = x.double() * torch.from_numpy(scipy.stats.norm.cdf(x.double().numpy()))
    torch.testing.assert_close(ops.gelu(x.double()), exact, rtol=1e-12, atol=1e-12)
    assert torch.equal(ops.gelu(x), F.gelu(x))  # whose sum of 1 and what is near -1 loses in float32
    if way == "plain":
        assert torch.equal(ops.gelu(x.bfloat16()), F.gelu(x.bfloat16()))


def test_enlarged_pictures_and_their_gradient(way):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, weights = ops.enlarge(x), torch.randn(2, 3, 8, 8)
    for row in range(8):
        for column in range(8):
            assert torch.equal(y[:, :, row, column], x[:, :, row // 2, column // 2])
    (grad,) = torch.autograd.grad((y * weights).sum(), x)
    torch.testing.assert_close(grad, weights.unfold(2, 2, 2).unfold(3, 2, 2).sum((4, 5)))


def test_what_is_computed_once_is_the_same_tensor_with_the_same_gradient(way):
    x, weights = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    y = ops.computed_once(x)
    assert torch.equal(y, x) and torch.equal(torch.autograd.grad((y * weights).sum(), x)[0], weights)
    assert (y is x) == (way == "plain")


def test_what_is_recomputed_keeps_nothing_inside_and_has_the_same_gradient(way):
    calls, x, factor = [], torch.randn(3, 4, requires_grad=True), torch.randn(4)

    def function(x, factor):
        calls.append(1)
        return (x.sin() * factor).exp()

    (expected,) = torch.autograd.grad(function(x, factor).sum(), x)
    calls.clear()
    y = ops.recomputed(x, function, factor)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
    assert len(calls) == (2 if way == "plain" else 1)
    calls.clear()
    for given in (x.detach(), x):
        with torch.set_grad_enabled(given is not x):
            assert torch.equal(ops.recomputed(given, function, factor), y) and calls.pop() and not calls


def test_which_tensors_are_updated_as_one(way):
    assert ops.stacks(torch.zeros(2), ["a", "b"]) == ([["a"], ["b"]] if way == "plain" else [["a", "b"]])


def test_only_a_processors_numbers_are_at_hand():
    assert ops.at_hand(torch.zeros(1)) and not ops.at_hand(torch.zeros(1, device="meta"))


def test_without_autocast_products_keep_their_dtype():
    x = torch.randn(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with ops.no_autocast(x):
            assert (x @ x).dtype == torch.float32


# ---------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_and_its_gradients_equal_the_fused_kernel(dtype, tolerance, masked, way):
    inputs = [torch.randn(2, 3, n, 8).to(dtype).requires_grad_() for n in (5, 9, 9)]
    mask = torch.rand(2, 1, 5, 9) < 0.5 if masked else None
    if masked:
        mask[..., 4] = True
    weights, results = torch.randn(2, 3, 5, 8).to(dtype), []
    for function in (ops.attend, torch.nn.functional.scaled_dot_product_attention):
        out = function(*inputs, mask, layers.Dropout(0.0) if function is ops.attend else 0.0)
        assert out.dtype == dtype
        results.append([out, *torch.autograd.grad((out * weights).sum(), inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, atol=tolerance, rtol=tolerance)


def test_attend_drops_weights_and_keeps_their_mean(way):
    q, k, v = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 6, 8), torch.rand(1, 1, 6, 8) + 1
    draws = torch.cat([ops.attend(q, k, v, None, layers.Dropout(0.5)) for _ in range(4000)])
    assert len(draws.flatten(1).unique(dim=0)) > 30
    torch.testing.assert_close(draws.mean(0), ops.attend(q, k, v, None, layers.Dropout(0.0))[0], rtol=0.1, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_projections_to_and_from_heads_equal_linear_maps(way, bias):
    into, out = layers.Linear(12, 3 * 12, bias=bias), layers.Linear(12, 12, bias=bias)
    x = torch.randn(2, 5, 12)
    heads = ops.project_heads(x, into, 4, 3)
    assert len(heads) == 3 and all(part.shape == (2, 4, 5, 3) for part in heads)
    with torch.no_grad():
        again = ops.project_heads(x, into, 4, 3)
    for a, b in zip(heads, again, strict=True):
        torch.testing.assert_close(a, b)
    for part, expected in zip(heads, into(x).chunk(3, -1), strict=True):
        assert torch.equal(ops.split_heads(ops.join_heads(part), 4), part)
        torch.testing.assert_close(ops.join_heads(part), expected)
        torch.testing.assert_close(ops.project_out(part, out), out(expected))
    layers.set_compute_dtype(into, torch.bfloat16)
    assert all(part.dtype == torch.bfloat16 for part in ops.project_heads(x, into, 4, 3))


def test_attention_and_its_gradients_are_alike_in_both_forms(monkeypatch):
    module, x, weights = layers.Attention(24, 3, 0.0), torch.randn(2, 7, 24, requires_grad=True), torch.randn(2, 7, 24)
    mask, results = torch.rand(2, 1, 7, 7) < 0.6, []
    mask |= torch.eye(7, dtype=torch.bool)
    for xla in (False, True):
        if xla:
            use_forms(monkeypatch)
        y = module(x, mask)
        results.append([y, *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])])
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(plain, other, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_overflow(way):
    q, k, v = torch.full((1, 1, 1, 4), 100.0), torch.randn(1, 1, 5, 4) * 100, torch.randn(1, 1, 5, 4)
    expected = v[0, 0, k[0, 0].sum(-1).argmax()]
    torch.testing.assert_close(ops.attend(q, k, v, None)[0, 0, 0], expected)
