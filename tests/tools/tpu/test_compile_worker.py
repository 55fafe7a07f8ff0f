"""tools.tpu.compile_worker as a program: what the compiler refuses comes out as text."""

import json
import subprocess
import sys

import pytest

from itit.xla.sharding import BATCH, axes
from tests.helpers.common import ROOT
from tests.helpers.compiler import needs_compiler, program
from tools.tpu import tpu_compiler
from tools.tpu.chips import Topology

MARKED = """
HloModule marked

ENTRY main {
  x = f32[8,8] parameter(0)
  y = f32[8,8] custom-call(x), custom_call_target="Sharding", sharding={devices=[8,1]<=[8]}
  ROOT z = f32[8,8] add(y, y)
}
"""
ROWS = ((8, 8), (BATCH, None))


def run(folder, hlo, request):
    (folder / "program.hlo").write_bytes(hlo)
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "tools.tpu.compile_worker", str(folder)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    return json.loads((folder / "result.json").read_text())


@needs_compiler
@pytest.mark.parametrize("specs, said", [
    ({}, "a sharding that is not among its specs: {devices=[8,1]<=[8]}"),
    ({"{devices=[8,1]0,1,2,3,4,5,6,7}": (BATCH, None)}, ""),  # another way to write it
])  # fmt: skip
def test_shardings_inside_are_rewritten(tmp_path, monkeypatch, specs, said):
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("JAX_PLATFORMS", "cpu"), ("TPU_ACCELERATOR_TYPE", "v4-8")):
        monkeypatch.setenv(name, value)
    made = program(MARKED, (ROWS,), (ROWS,), specs=specs)
    request = tpu_compiler.request(made, Topology.parse("v4:2x2x1"), axes(2, 2))
    result = run(tmp_path, made.hlo, request)
    assert said in result.get("error", "") and bool(said) == ("error" in result)
    assert result["host_kib"] > 0
    if not said:
        assert "f32[2,8]" in (tmp_path / "module.txt").read_text()


@needs_compiler
def test_what_is_no_program(tmp_path):
    request = {"topology": "v4:2x2x1", "config": "megacore", "inputs": [], "outputs": [], "donated": {}, "rewrite": []}
    assert "proto" in run(tmp_path, b"nonsense", request)["error"]
