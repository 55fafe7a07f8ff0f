"""Everything in tests/xla/devices, on one and on eight virtual devices, each in a process of its own."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT

TRACING = "tests/xla/devices/test_tracing.py"  # leaves placeholders behind, which nothing can be computed beside
# Each compiled program takes up mappings of memory, of which Linux gives a process 65,530: the steps take 45,000.
STEP = "tests/xla/devices/test_step.py"
OTHERS = ["tests/xla/devices", f"--ignore={TRACING}", f"--ignore={STEP}"]
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles in half the time
needs_xla = pytest.mark.skipif(importlib.util.find_spec("torch_xla") is None, reason="torch_xla is not installed")


@needs_xla
@pytest.mark.parametrize("num_devices, what", [(1, [STEP]), (1, OTHERS), (8, [STEP]), (8, OTHERS), (8, [TRACING])])
def test_on_virtual_devices(num_devices, what):
    environment = os.environ | {
        "ITIT_XLA_TESTS": "1", "PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(num_devices), "TF_CPP_MIN_LOG_LEVEL": "2",
        "OMP_NUM_THREADS": "1", "XLA_FLAGS": XLA_FLAGS,
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--durations=5", *what]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(ended.stdout[-6000:], ended.stderr[-2000:])
    assert ended.returncode == 0 and " passed" in ended.stdout
