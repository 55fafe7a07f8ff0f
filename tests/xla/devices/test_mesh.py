"""Tensors of a state as pieces: what a mesh saves and loads, without any host holding a whole split tensor."""

import math

import pytest
import torch

from itit.checkpoint import store
from itit.checkpoint.pieces import slices
from itit.xla import api, sharding
from tests.xla.devices.small import MESHES, connect

SPECS = [(("fsdp", None), (16, 6)), ((None, "fsdp"), (3, 16)), ((None, None), (4, 4)), ((), ()), (("fsdp",), (8,)),
         ((sharding.TRAINED, None), (16, 6)), ((sharding.TRAINED,), (8,))]  # fmt: skip


def made(mesh):
    """Tensors on a mesh, by name, and the same on the processor."""
    host = {f"t{i}": torch.randn(shape) for i, (_, shape) in enumerate(SPECS)}
    placed = {name: mesh.mark(value.to(mesh.device), spec)
              for (name, value), (spec, _) in zip(host.items(), SPECS, strict=True)}  # fmt: skip
    mesh._specs = {id(tensor): spec for tensor, (spec, _) in zip(placed.values(), SPECS, strict=True)}
    api.sync(wait=True)
    return placed, host


@pytest.mark.parametrize("data, fsdp", MESHES)
def test_pieces_are_as_small_as_the_devices_parts(data, fsdp):
    mesh = connect(data, fsdp)
    placed, host = made(mesh)
    for (name, pieces), (spec, shape) in zip(mesh.owned(placed).items(), SPECS, strict=True):
        count = data * fsdp if sharding.TRAINED in spec else fsdp if "fsdp" in spec else 1
        assert len(pieces) == count  # a copy on another row of the mesh is not saved again
        found = torch.full(shape, torch.nan)
        for piece in pieces:
            assert piece.shape == shape and piece.value.numel() == math.prod(shape) // count
            found[slices(piece.index)] = piece.value
        assert torch.equal(found, host[name])
        assert sorted(mesh.held(placed[name])) == sorted(piece.index for piece in pieces)


@pytest.mark.parametrize("data, fsdp", MESHES)
def test_a_mesh_is_filled_by_its_parts_and_keeps_its_shardings(tmp_path, data, fsdp):
    tensors = {f"t{i}": torch.randn(shape) for i, (_, shape) in enumerate(SPECS)}
    store.save(str(tmp_path), 1, store.whole(tensors), {}, 1)
    mesh = connect(data, fsdp)
    placed, _ = made(mesh)
    before = [api.sharding_text(tensor) for tensor in placed.values()]

    def load(_, reader, meta):
        for name, tensor in placed.items():
            parts = {index: reader.read(name, index) for index in mesh.held(tensor)}
            for part in parts.values():
                assert part.numel() == math.prod(tensor.shape) // len(parts)
            mesh.fill(tensor, parts)

    store.restore(str(tmp_path), load)
    assert before == [api.sharding_text(tensor) for tensor in placed.values()]
    for name, tensor in placed.items():
        assert torch.equal(tensor.cpu(), tensors[name]), name
    store.save(str(tmp_path), 2, mesh.owned(placed), {}, 1)
    back = store.restore(str(tmp_path))[1]
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def host_of(mesh, monkeypatch, mine):
    """The mesh as a host sees it that has only some of the devices."""
    shards, places = api.local_shards, api.local_places
    monkeypatch.setattr(api, "local_shards", lambda tensor: [shards(tensor)[i] for i in mine])
    monkeypatch.setattr(api, "local_places", lambda tensor: [places(tensor)[i] for i in mine])
    monkeypatch.setattr(mesh.hosts, "leads", 0 in mine)


@pytest.mark.skipif(len(MESHES) == 1, reason="one device has no hosts")
@pytest.mark.parametrize("data, fsdp", MESHES)
@pytest.mark.parametrize("count", [2, 4, 8])
def test_hosts_together_own_everything_once(data, fsdp, count):
    mesh = connect(data, fsdp)
    placed, host = made(mesh)
    found = {name: torch.zeros(tensor.shape) for name, tensor in host.items()}
    times = {name: torch.zeros(tensor.shape) for name, tensor in host.items()}
    for mine in torch.arange(8).split(8 // count):
        with pytest.MonkeyPatch.context() as patch:
            host_of(mesh, patch, mine.tolist())
            owned, held = mesh.owned(placed), {name: mesh.held(tensor) for name, tensor in placed.items()}
        for name, pieces in owned.items():
            assert {piece.index for piece in pieces} <= set(held[name])
            for piece in pieces:
                found[name][slices(piece.index)] = piece.value
                times[name][slices(piece.index)] += 1
    for name, tensor in host.items():
        assert torch.equal(found[name], tensor) and bool((times[name] == 1).all()), name
