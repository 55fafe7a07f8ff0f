"""tpu_compiler: a torch_xla program compiles for other meshes, and what does not compile is said, not died of."""

import signal
import sys

import pytest

from itit.xla.sharding import Program, axes
from tests.helpers import traced
from tests.helpers.compiler import needs_compiler, program
from tools.tpu import tpu_compiler
from tools.tpu.chips import Topology
from tools.tpu.hlo import array_bytes

TRAY, MESH = Topology.parse("v4:2x2x1"), axes(1, 4)
SQUARE = (65536, 65536)  # 16 GiB of float32
BIG = """
HloModule big

ENTRY main {
  x = f32[65536,65536] parameter(0)
  w = f32[65536,65536] parameter(1)
  ROOT y = f32[65536,65536] add(x, w)
}
"""


@needs_compiler
@pytest.mark.parametrize("text, data, fsdp", [("v4:2x2x1", 2, 2), ("v5e:4x4", 2, 8)])
def test_a_step_for_another_mesh(traced_programs, text, data, fsdp, tmp_path):
    """Every tensor comes out cut as its spec says, and the new weights take the old ones' place."""
    results = {(traced.H, traced.D): 0, (traced.D, traced.H): 1}  # shape of a weight -> its place among the results
    step = next(p for p in traced_programs if p.name == "update")
    step = step._replace(donated=tuple((i, results[x]) for i, (x, _) in enumerate(step.inputs) if x in results))
    found = tpu_compiler.compile_program(step, Topology.parse(text), axes(data, fsdp), tmp_path)
    assert found.error == "" and found.seconds > 0 and found.host_gib > 0
    cut = dict.fromkeys(results, fsdp) | {(traced.B, traced.D): data * fsdp}
    shapes = [(shape[0] // cut[shape], *shape[1:]) if shape else () for shape, _ in step.inputs]
    expected = [f"f32[{','.join(map(str, shape))}]" for shape in shapes]
    assert sorted(found.module.parameters()) == sorted(expected)
    state = 2 * 4 * traced.H * traced.D // fsdp
    assert found.memory["alias"] == state and found.memory["output"] >= state
    assert found.memory["argument"] >= sum(array_bytes(array) for array in expected)
    assert (tmp_path / "update.txt").read_text().startswith("HloModule")


@needs_compiler
def test_parts_reach_the_compiled_program(traced_programs):
    """Forward and backward passes alike: the gradients' sums over chips are of the part that they belong to."""
    step = next(p for p in traced_programs if p.name == "update")
    module = tpu_compiler.compile_program(step, TRAY, axes(2, 2)).module
    cycles = module.cycles("none")
    assert cycles["t2i"] > 0 and cycles["optimizer, EMA"] > 0
    reductions = [c for c in module.collectives("none") if c.kind in ("reduce-scatter", "all-reduce")]
    assert sum(c.size for c in reductions if c.part == "t2i") >= 2 * 4 * traced.H * traced.D // 2
    assert not [c for c in reductions if c.part == "none" and c.size > 4]


@needs_compiler
def test_memory_that_runs_out_is_said():
    spec = (SQUARE, (None, None))
    found = tpu_compiler.compile_program(program(BIG, (spec, spec), (spec,)), TRAY, MESH)
    assert found.error.startswith("out of memory: ") and "of 30.75G hbm a chip" in found.error
    assert found.module is None


def test_a_shape_that_does_not_divide():
    wrong = Program("update", 1, b"", (((6, 8), ("fsdp", None)),), None, (), {})
    with pytest.raises(ValueError, match=r"update, input 0 of shape \[6, 8\]: 6 cannot be split over 4 chips"):
        tpu_compiler.compile_program(wrong, TRAY, MESH)


@pytest.mark.parametrize("ends, said", [
    ("os.abort()", f"the compiler died (signal {signal.SIGABRT.value}): E0000 Check failed: cost"),
    ("sys.exit(3)", "the compiler died (code 3): E0000 Check failed: cost"),
])  # fmt: skip
def test_a_compiler_that_dies(monkeypatch, tmp_path, ends, said):
    found = compile_with(monkeypatch, tmp_path, ends)
    assert (found.error, found.module, found.memory) == (said, None, {})


def test_a_compiler_that_is_killed_says_nothing_of_the_program(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="^the compiler was killed: it needs more memory than this machine has$"):
        compile_with(monkeypatch, tmp_path, "os.kill(os.getpid(), 9)")


def compile_with(monkeypatch, tmp_path, ends):
    """A program by a compiler that ends so."""
    dying = tmp_path / "python"
    dying.write_text(f"#!{sys.executable}\nimport os, sys\nprint('E0000 Check failed: cost', file=sys.stderr)\n"
                     f"print('*** more', file=sys.stderr, flush=True)\n{ends}\n")  # fmt: skip
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    return tpu_compiler.compile_program(Program("update", 1, b"", (), None, (), {}), TRAY, MESH)


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(tpu_compiler, "NEEDED", {"no-such-package": "1.0"})
    with pytest.raises(ValueError, match=r"no-such-package is not installed: pip install -e \.\[preflight\]"):
        tpu_compiler.check_installed()
    monkeypatch.setattr(tpu_compiler, "NEEDED", {"numpy": "0.1"})
    with pytest.raises(ValueError, match=r"numpy .*: must be 0\.1"):
        tpu_compiler.check_installed()
