"""Functions captured once and replayed: what comes out, what is updated, and what is refused."""

import pytest
import torch

from itit.xla import api
from itit.xla.capture import Captured, Lazy
from tests.xla.devices.small import MESHES, connect


@pytest.fixture(scope="module")
def mesh():
    return connect(*MESHES[-1])


def rows(mesh, *shape, fill=None):
    """A tensor on the mesh, and the same on the processor."""
    host = torch.randn(8, *shape) if fill is None else torch.full((8, *shape), float(fill))
    return mesh.to_device({"x": host.numpy()})["x"], host


def scaled(x, number):
    return x * number + 1


def test_replays_use_new_arguments_and_compile_nothing(mesh):
    run = Captured(mesh)
    for turn in range(4):
        (x, host), number = rows(mesh, 3), run.number(0.5 + turn)
        before = api.num_compilations()
        found = run(scaled, x, number)
        assert api.num_compilations() - before == (turn == 0)
        assert torch.allclose(found.cpu(), host * (0.5 + turn) + 1)
    assert len(run.graphs) == 1


def test_a_float_is_no_whole_number_of_the_same_value(mesh):
    run = Captured(mesh)
    for value, dtype in ((1, torch.int64), (1.0, torch.float32), (1, torch.int64), (0.0, torch.float32)):
        number = run.number(value)
        assert number.dtype == dtype and number.item() == value
    assert run.number(1) is run.number(1) and run.number(2.0) is not run.number(2.0)


def grown(weight, x):
    weight.add_(x.sum(0))
    return weight.sum() * 2, x, weight


def test_updated_tensors_are_donated_and_rebound(mesh):
    run, lazy = Captured(mesh), Lazy(mesh)
    weights = [mesh.mark(torch.zeros(16).to(mesh.device), (None,)) for _ in range(2)]
    api.sync(wait=True)
    expected = torch.zeros(16)
    for _ in range(4):
        x, host = rows(mesh, 16)
        expected += host.sum(0)
        total, same, weight = run(grown, weights[0], x, updates=[weights[0]])
        lazy(grown, weights[1], x, updates=[weights[1]])
        assert torch.allclose(weights[0].cpu(), expected, atol=1e-5) and torch.equal(weight.cpu(), weights[0].cpu())
        assert torch.allclose(total.cpu(), 2 * expected.sum(), atol=1e-4) and same is x
        assert torch.equal(weights[0].cpu(), weights[1].cpu())


def test_another_shape_or_sharding_is_an_error_that_names_the_argument(mesh):
    run = Captured(mesh)
    run(scaled, rows(mesh, 3)[0], run.number(2.0))
    with pytest.raises(ValueError, match=r"^scaled: argument \[0\] was \(\(8, 3\), .* is \(\(8, 4\), "):
        run(scaled, rows(mesh, 4)[0], run.number(2.0))
    with pytest.raises(ValueError, match=r"^scaled: argument \[1\] was .*float32.* is .*int64"):
        run(scaled, rows(mesh, 3)[0], run.number(2))
    if mesh.num_devices > 1:
        other = mesh.mark(torch.randn(8, 3).to(mesh.device), (None, None))
        with pytest.raises(ValueError, match=r"^scaled: argument \[0\] was .*devices=.* is .*replicated"):
            run(scaled, other, run.number(2.0))
    relaxed = Captured(mesh, strict=False)
    for width in (3, 4, 3):
        x, host = rows(mesh, width)
        assert torch.allclose(relaxed(scaled, x, relaxed.number(2.0)).cpu(), host * 2 + 1)
    assert len(relaxed.graphs) == 2


def test_torchs_own_random_numbers_are_refused(mesh):
    with pytest.raises(AssertionError, match="noisy draws torch's own random numbers"):
        Captured(mesh)(noisy, rows(mesh, 3)[0])


def noisy(x):
    return x + torch.rand_like(x)


def test_numbers_inside_are_not_taken_for_tensors_that_have_gone(mesh):
    """The handle of a buffer that is freed while a function is traced may be given to the next one."""
    x, host = rows(mesh, 3)
    gone = [torch.tensor(float(i), device=mesh.device) for i in range(50)]
    api.sync(wait=True)

    def frees(x):
        gone.clear()
        return x + sum(x.new_full((), 0.5 + i) for i in range(50))

    assert torch.allclose(Captured(mesh)(frees, x).cpu(), host + sum(0.5 + i for i in range(50)))


def test_a_tensor_that_was_not_given_is_refused(mesh):
    hidden = rows(mesh, 3)[0]

    def reads(x):
        return x + hidden

    with pytest.raises(AssertionError, match=r"reads reads what it was not given: \['torch.float32 \(8, 3\)'\]"):
        Captured(mesh)(reads, rows(mesh, 3)[0])


def test_an_operation_that_falls_back_to_the_host_is_refused(mesh):
    with pytest.raises(AssertionError, match="upsampled: falls back to the host: .*aten::upsample_nearest2d_backward"):
        Captured(mesh)(upsampled, rows(mesh, 2, 4, 4)[0])


def upsampled(x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.interpolate(leaf, scale_factor=2.0).square().sum(), leaf)[0]


def test_tensors_that_have_no_device_do_not_matter(mesh):
    """Autograd leaves some about."""

    class Without(torch.Tensor):
        @property
        def device(self):
            raise RuntimeError("tensor does not have a device")

    other = torch.zeros(1).as_subclass(Without)
    x, plain = rows(mesh, 3)
    run = Captured(mesh)
    assert torch.equal(run(scaled, x, run.number(2.0)).cpu(), scaled(plain, torch.tensor(2.0)))
    assert other.shape == (1,)


def test_work_between_two_calls_is_refused(mesh):
    run = Captured(mesh)
    run(scaled, rows(mesh, 3)[0], run.number(2.0))
    x = mesh.place(rows(mesh, 3)[0] + 1)
    with pytest.raises(AssertionError, match="work between two captured calls"):
        run(scaled, x, run.number(2.0))


def test_modules_give_their_weights_and_take_new_ones(mesh):
    run, layer = Captured(mesh), torch.nn.Linear(3, 2)
    host = torch.nn.Linear(3, 2)
    mesh.adopt(layer)
    for _ in range(3):
        for p, q in zip(host.parameters(), layer.parameters(), strict=True):
            p.data = torch.randn_like(p)
            q.data = mesh.mark(p.data.to(mesh.device), (None,) * p.ndim)
        api.sync(wait=True)
        x, plain = rows(mesh, 3)
        assert torch.allclose(run(applied, layer, x).cpu(), host(plain), atol=1e-5)


def test_what_a_module_is_to_own_is_the_same_with_new_values(mesh):
    """So that a captured function that reads it reads the newest."""
    run, modules = Captured(mesh), [mesh.adopt(torch.nn.Linear(1, 1)) for _ in range(2)]
    weights = {name: (torch.zeros(3), torch.float32) for name in "abcd"} | {"e": (torch.zeros(8, 3), torch.bfloat16)}
    owned = [run.own(module, weights) for module in modules]
    for turn in range(3):
        for module, casts in zip(modules, owned, strict=True):
            module.casts = run.own(module, weights)
            assert module.casts is casts
            assert all((casts[n].shape, casts[n].dtype) == (w.shape, dtype) for n, (w, dtype) in weights.items())
            x, plain = rows(mesh, 3)
            run(fill_casts, module, x, run.number(1.0 + turn), updates=list(casts.values()))
            seen = run(from_casts, module, x)
            assert torch.allclose(seen.cpu(), plain + plain[0] * (1.0 + turn) + 2, atol=1e-5), turn
    assert owned[0]["a"] is not owned[1]["a"] and len(run.graphs) == 4  # one for each module's
    first = next(iter(run.graphs.values()))
    assert len(first.updated) == 2  # four in one buffer, and "e"


def fill_casts(module, x, number):
    for i, tensor in enumerate("abcd"):
        module.casts[tensor].copy_(x[0] * number + i)
    module.casts["e"].fill_(1.0)


def from_casts(module, x):
    return x + module.casts["c"] * module.casts["e"]


@torch.no_grad()
def applied(module, x):
    return module(x)
