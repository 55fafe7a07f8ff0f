"""What is set before torch is loaded: by every entry, unless the user has; and that memory is kept."""

import json
import os
import subprocess
import sys

import pytest

from itit.backends import processor
from tests.helpers.common import ROOT

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def outcome(code, **given):
    environment = {k: v for k, v in os.environ.items() if k not in (*NAMES, *processor.MALLOC)} | given
    command = [sys.executable, "-c", f"import json, os, sys\n{code}"]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


@pytest.mark.parametrize("entry", ["itit", "itit.config", "tools", "tools.score_captions"])
def test_threads_sleep_soon(entry):
    code = f"import {entry}; print(json.dumps([os.environ.get(n) for n in {NAMES}]))"
    assert outcome(code) == [processor.SPIN_COUNT, None]
    assert outcome(code, GOMP_SPINCOUNT="7") == ["7", None]
    assert outcome(code, OMP_WAIT_POLICY="passive") == [None, "passive"]


def test_it_is_set_before_torch_is_loaded():
    assert outcome("import itit, tools; print(json.dumps('torch' in sys.modules))") is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts page faults of glibc's malloc")
def test_memory_is_kept():
    """Buffers that are freed and asked for again cost few page faults; all of them where a user wants that."""
    code = """
import resource
import itit
import torch
def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(rounds):
        x = torch.ones((i % 3 + 1) << 20)
        y = x + 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(12)
print(json.dumps(faults(12)))
"""
    assert outcome(code) < outcome(code, **dict.fromkeys(processor.MALLOC, "65536")) / 3
