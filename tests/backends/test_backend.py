"""Where a run computes: which backend is taken, and plain torch's."""

import sys

import numpy as np
import pytest
import torch

from itit.backends import connect as backends
from itit.backends.connect import connect
from itit.backends.local import Local
from itit.config import TrainConfig
from itit.noise import Noise
from itit.program import Eager


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.delenv("PJRT_DEVICE", raising=False)
    monkeypatch.setattr(backends.glob, "glob", lambda pattern: [])


@pytest.mark.parametrize("gpu", [True, False])
def test_without_tpus_a_gpu_is_taken_where_there_is_one(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert connect(TrainConfig()).device.type == ("cuda" if gpu else "cpu")
    assert connect(TrainConfig(backend="cpu")).device == torch.device("cpu")
    if gpu:
        assert connect(TrainConfig(backend="cuda")).device.type == "cuda"
    else:
        with pytest.raises(ValueError, match="--backend=cuda: "):
            connect(TrainConfig(backend="cuda"))


@pytest.mark.parametrize("sign", ["chips", "variable", "explicit"])
def test_tpus_go_first_and_what_is_missing_is_named(monkeypatch, sign):
    monkeypatch.setitem(sys.modules, "itit.xla.mesh", None)  # importing it fails
    if sign == "chips":
        monkeypatch.setattr(backends.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    if sign == "variable":
        monkeypatch.setenv("PJRT_DEVICE", "TPU")
    with pytest.raises(ValueError, match="--backend=xla: torch_xla cannot be imported: "):
        connect(TrainConfig(backend="xla" if sign == "explicit" else "auto"))


def test_chips_that_are_not_to_be_used_are_left_alone(monkeypatch):
    monkeypatch.setattr(backends.glob, "glob", lambda pattern: ["/dev/accel0"])
    monkeypatch.setenv("PJRT_DEVICE", "CPU")
    assert isinstance(connect(TrainConfig()), Local)


def test_the_precision_of_products_and_convolutions_is_set():
    for precision in ("medium", "highest"):
        connect(TrainConfig(backend="cpu", matmul_precision=precision))
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cudnn.allow_tf32 == (precision == "medium")


def test_other_devices_are_taken_by_name_and_said_to_be_untried(monkeypatch, caplog):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    assert connect(TrainConfig()).device == connect(TrainConfig(backend="cpu")).device == torch.device("cpu")
    assert not caplog.records
    assert connect(TrainConfig(backend="xpu")).device == torch.device("xpu")
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["--backend=xpu"]
    with pytest.raises(ValueError, match="^--backend=gpu: .*; choose cpu or xpu$"):
        connect(TrainConfig(backend="gpu"))


def test_plain_torch():
    local = Local("cpu")
    rows = np.arange(6).reshape(2, 3)
    assert local.to_device({"a": rows})["a"].tolist() == rows.tolist()
    assert torch.equal(local.noise(1, 2, 3)("x", (4,)), Noise(1, 2, "cpu", 3)("x", (4,)))
    weight = torch.nn.Parameter(torch.zeros(2))
    (index,) = local.held(weight)
    local.fill(weight, {index: torch.tensor([1.0, 2.0])})
    assert weight.tolist() == [1.0, 2.0] and weight.requires_grad
    ((shape, owned, value),) = local.owned({"w": weight})["w"]
    assert shape == (2,) and owned == index == ((0, 2),) and value.tolist() == [1.0, 2.0]
    assert isinstance(local.run, Eager) and local.hosts.leads and not local.hosts.any(False)


def test_a_watched_step_is_recorded(tmp_path):
    with Local("cpu").watch(str(tmp_path)):
        torch.ones(3).sum()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("pt.trace.json")]
