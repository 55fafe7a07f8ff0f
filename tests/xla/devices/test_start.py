"""What keeps XLA from starting ends in one line that says what to do."""

import subprocess
import sys

import pytest

from itit.config import TrainConfig
from itit.xla import api, mesh
from tests.helpers.common import ROOT


@pytest.mark.parametrize(
    "before, said",
    [
        ("import sys, types; sys.modules['tensorflow'] = types.ModuleType('tensorflow')",
         "TensorFlow was imported before torch_xla, which aborts the process: import itit.xla.api first"),
        ("import glob, os; del os.environ['PJRT_DEVICE']; glob.glob = lambda pattern: ['/dev/accel0']",
         "PJRT_DEVICE is not set, and this machine has TPU chips: export PJRT_DEVICE=TPU"),
    ],
)  # fmt: skip
def test_what_must_be_right_before_the_import(before, said):
    ended = subprocess.run(
        [sys.executable, "-c", f"{before}\nimport itit.xla.api"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1 and ended.stderr.splitlines()[-1] == f"ValueError: {said}"


def test_versions_that_do_not_belong_together(monkeypatch):
    monkeypatch.setattr(api.torch_xla, "__version__", "2.8.0")
    with pytest.raises(ValueError, match=r"^torch 2\.9.* and torch_xla 2\.8\.0: must be of one version$"):
        mesh.connect(TrainConfig(xla_cache=""))


@pytest.mark.parametrize("flag", ["compile", "recompute_blocks"])
def test_what_is_for_other_backends(flag):
    with pytest.raises(ValueError, match=f"^--{flag}: not on XLA, which [^\n]+$"):
        mesh.connect(TrainConfig(xla_cache="", **{flag: True}))


def test_a_tpu_in_use(monkeypatch):
    def locked():
        raise RuntimeError("Bad StatusOr access: UNKNOWN: TPU initialization failed: libtpu lockfile\nmore")

    monkeypatch.setattr(api.xr, "global_runtime_device_count", locked)
    with pytest.raises(ValueError, match="^the TPU is in use by another process .*: .*libtpu lockfile$"):
        mesh.connect(TrainConfig(xla_cache=""))
