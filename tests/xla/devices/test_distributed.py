"""What torchrun's processes saved goes on on a mesh of XLA devices, and the other way round."""

import pytest
import torch

from itit import train
from itit.checkpoint import store
from itit.config import Config, replace, to_json
from itit.training.state import frozen, make_state
from tests.helpers.torchrun import torchrun
from tests.training.test_train import settings
from tests.xla.devices.small import MESHES, connect
from tests.xla.devices.test_train import SIZES, data  # noqa: F401


@pytest.mark.parametrize("mesh_data, mesh_fsdp", MESHES[-1:])
def test_processes_and_meshes_continue_each_other(data, tmp_path, mesh_data, mesh_fsdp):  # noqa: F811
    values = settings(data, **SIZES, workdir=str(tmp_path), ema_decay=0.9, keep_last=9, stop_after_steps=1)
    processes = values | {"backend": "cpu", "mesh_data": 0, "mesh_fsdp": 0}
    assert torchrun(processes, 2).returncode == 0
    mesh, config = connect(mesh_data, mesh_fsdp), replace(Config(), **values).resolve()
    state = make_state(config, mesh)
    assert train.resume(str(tmp_path), state, config, mesh, {}) == (1, False)
    _, saved, _ = store.restore(str(tmp_path))
    found = mesh.on_host(state.tensors())
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    mesh.pack(state)
    meta = {"model": to_json(config.model), "frozen": frozen(state)}
    store.save(str(tmp_path), 2, mesh.owned(state.tensors()), meta, 9)
    ended = torchrun(processes, 2)
    assert ended.returncode == 0 and "goes on from step 2" in ended.stderr and store.latest_step(str(tmp_path)) == 3
