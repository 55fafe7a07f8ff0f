"""Tensors of a state that lie together: programs see and change each, and nothing else reads what is not there."""

import pytest
import torch

from itit.checkpoint.pieces import whole_index
from itit.optim import Ema
from itit.train_step import State
from itit.xla.buffers import lay
from tests.xla.devices.small import MESHES, connect


class Net(torch.nn.Module):
    """Three matrices of 16 x 16 with biases of 16, and what has no two likes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.c, self.d = torch.nn.Linear(16, 16), torch.nn.Linear(16, 8)


def placed(mesh):
    """The same State on the processor and on the mesh."""
    states = [
        State(net, None, None, (), None, Ema(net.named_parameters(), 0.5)) for net in (Net(), Net().to(mesh.device))
    ]
    values = {name: torch.randn(tensor.shape) for name, tensor in states[0].tensors().items()}
    for state, device in zip(states, ("cpu", mesh.device), strict=True):
        for name, tensor in state.tensors().items():
            tensor.data = values[name].to(device)
    mesh.place_state(states[1])
    return states


@torch.no_grad()
def moved(state, x):
    """Every weight in its own way, and the average after it."""
    for i, p in enumerate(state.model.parameters()):
        p.mul_(1 - 0.1 * i).add_(x.mean(0)[: p.shape[-1]])
    state.ema.update(state.model.named_parameters(), torch.ones((), dtype=torch.bool, device=x.device))
    return out(state.model, x)


@torch.no_grad()
def out(model, x):
    return model.d(model.c(model.b(model.a(x))))


def check(mesh, state, expected):
    for name, tensor in mesh.on_host(state.tensors()).items():
        torch.testing.assert_close(tensor, expected.tensors()[name].detach(), msg=lambda m, n=name: f"{n}: {m}")


def test_a_vector_lies_as_a_matrix_of_one_row():
    assert lay([torch.zeros(16)] * 3, ("fsdp",)) == ((3, 1, 16), (None, None, "fsdp"))
    assert lay([torch.zeros(8, 4)] * 5, (None, "fsdp")) == ((5, 8, 4), (None, None, "fsdp"))


@pytest.mark.parametrize("mode", ["captured", "lazy"])
@pytest.mark.parametrize("data, fsdp", MESHES)
def test_programs_see_and_change_each_tensor(data, fsdp, mode):
    mesh = connect(data, fsdp, xla_mode=mode)
    plain, state = placed(mesh)
    mesh.pack(state)
    check(mesh, state, plain)
    buffers = mesh.packs.buffers(state.tensors().values())
    assert sorted(len(b) for b in buffers if b.ndim == 3) == [3, 3, 3, 3]
    for _ in range(3):
        x = torch.randn(8, 16)
        on_mesh = mesh.to_device({"x": x.numpy()})["x"]
        found = mesh.run(moved, state, on_mesh, updates=list(state.tensors().values()))
        torch.testing.assert_close(found.cpu(), moved(plain, x), atol=1e-4, rtol=1e-4)
        check(mesh, state, plain)
        for name, averaged in (("weights", False), ("averages", True)):
            if averaged:
                with plain.averaged(), state.averaged():
                    found, expected = mesh.sampler(out, state.model, on_mesh), out(plain.model, x)
            else:
                found, expected = mesh.sampler(out, state.model, on_mesh), out(plain.model, x)
            torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    if mode == "captured":
        (graph,) = mesh.run.graphs.values()
        read = [source for source in graph.sources if isinstance(source, torch.Tensor) and source.ndim]
        assert len(graph.updated) == len(buffers) == len(read) == 8


@pytest.mark.parametrize("data, fsdp", MESHES)
def test_what_is_saved_is_what_is_saved_of_each(data, fsdp):
    mesh = connect(data, fsdp)
    _, state = placed(mesh)
    before = mesh.owned(state.tensors())
    mesh.pack(state)
    after = mesh.owned(state.tensors())
    for name, pieces in before.items():
        assert [piece[:2] for piece in pieces] == [piece[:2] for piece in after[name]], name
        assert all(torch.equal(a.value, b.value) for a, b in zip(pieces, after[name], strict=True)), name


def test_outside_programs_there_is_no_value():
    mesh = connect(*MESHES[-1])
    plain, state = placed(mesh)
    mesh.pack(state)
    weight = state.model.a.weight
    assert weight.shape == (16, 16) and weight.requires_grad
    with pytest.raises(RuntimeError, match="HasValue"):
        weight.cpu()
    with pytest.raises(AssertionError, match="filled before it is packed"):
        mesh.fill(weight, {whole_index((16, 16)): torch.zeros(16, 16)})
    check(mesh, state, plain)


@torch.no_grad()
def moved_in_part(state, x):
    state.model.a.weight.add_(x.sum())


def test_a_part_of_a_buffer_is_not_changed_alone():
    mesh = connect(*MESHES[-1])
    plain, state = placed(mesh)
    mesh.pack(state)
    x = mesh.to_device({"x": torch.randn(8, 16).numpy()})["x"]
    with pytest.raises(AssertionError, match="1 of 3 tensors of one buffer were changed"):
        mesh.run(moved_in_part, state, x, updates=[state.model.a.weight])
    check(mesh, state, plain)
