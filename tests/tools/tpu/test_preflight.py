"""tools.preflight: from programs to the table and the JSON, and what it refuses."""

import json
import subprocess
import sys

import pytest

from itit import config as config_lib
from itit.tasks import TASKS
from itit.xla.sharding import Program
from tests.helpers.common import ROOT
from tests.helpers.compiler import needs_compiler
from tests.helpers.tiny import make_config
from tools import preflight
from tools.tpu.chips import CHIPS, Topology

TRAY = Topology.parse("v4:2x2x1")
QUIET = dict(say=lambda text: None)


def config_of(**flags):
    return make_config(**{f"{task}_batch": 8 for task in TASKS} | flags)


@needs_compiler
def test_the_whole_way_at_4_chips(monkeypatch, traced_programs):
    monkeypatch.setattr(preflight, "programs", lambda *args: traced_programs)
    said = []
    result = preflight.preflight(config_of(), TRAY, say=said.append)
    json.dumps(result)
    assert result["compiles"] and result["fits"] and set(preflight.KEYS) <= set(result)
    assert result["mesh"] == {"data": 1, "fsdp": 4} and result["samples_per_step"] == 8 * len(TASKS)
    assert result["dispatches_per_step"] == 26
    assert {"t2i", "t2i2t synthesis", "optimizer, EMA"} <= set(result["parts_ms"])
    assert sum(result["parts_ms"].values()) == pytest.approx(result["predicted_step_ms"])
    assert result["predicted_ici_ms"] > 0 and 0 < result["hbm_gib_per_chip"] < 0.1 and result["mfu"] > 0
    assert [line.split(":")[0] for line in said if line.startswith("compiling")] == [
        "compiling 1 of 3", "compiling 2 of 3", "compiling 3 of 3"]  # fmt: skip


@needs_compiler
def test_the_real_step_at_4_chips(tmp_path):
    flags = ["--flagfile=launch/flagfiles/table4/row07.cfg", "--preset=nano", "--depth=1", "--image_decoder_depth=1",
             "--text_decoder_depth=1", "--t5_size=nano", "--num_image_tokens=16", "--num_text_tokens=8",
             "--codebook_size=256", "--vocab_size=256", "--bos_id=255", "--vqgan=", "--mesh_fsdp=4",
             *(f"--{task}_batch=8" for task in ("t2i", "i2t", "t2i2t", "i2t2i")), "--num_decode_steps=2",
             "--synth_decode_steps=2"]  # fmt: skip
    path = tmp_path / "out.json"
    ended = subprocess.run([sys.executable, "-m", "tools.preflight", "--topology=v4:2x2x1", f"--json={path}", *flags],
                           cwd=ROOT, capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    result = json.loads(path.read_text())
    assert result["compiles"] and result["fits"] and set(preflight.KEYS) <= set(result)
    assert {"t2i", "i2t + i2i", "t2i2t synthesis", "t2i2t middle", "t2i2t final", "i2t2i synthesis", "i2t2i middle",
            "i2t2i final, with T5", "T5 of the texts", "optimizer, EMA"} <= set(result["parts_ms"])  # fmt: skip
    assert all(ms > 0 for ms in result["parts_ms"].values()) and 0 < result["hbm_gib_per_chip"] < 1
    assert {"update", "decode_step", "greedy_steps"} <= {program["name"] for program in result["programs"]}


def test_it_stops_at_what_does_not_compile(monkeypatch):
    failed = preflight.tpu_compiler.Compiled("prepare", 1, "out of memory", {}, None, 1.0, 1.0)
    calls = []
    program = Program("prepare", 1, b"", (), None, (), {})
    monkeypatch.setattr(preflight, "programs", lambda *args: [program] * 3)
    monkeypatch.setattr(preflight.tpu_compiler, "compile_program", lambda *args: calls.append(args) or failed)
    result = preflight.preflight(config_of(), TRAY, **QUIET)
    assert not result["compiles"] and result["errors"] == {"prepare": "out of memory"} and len(calls) == 1


@pytest.mark.parametrize("flags, said", [
    ({"t2i_batch": 6}, "--t2i_batch=6: must be a multiple of 4 devices"),
    ({"i2t_batch": 12, "num_microbatches": 2, "t2i_batch": 8},
     "--i2t_batch=12: must be a multiple of 4 devices in 2 microbatches"),
])  # fmt: skip
def test_batches_that_do_not_divide(flags, said):
    with pytest.raises(ValueError, match=said):
        preflight.preflight(config_of(**flags), TRAY, **QUIET)


def test_image_tokenizer(tmp_path):
    assert preflight.tokenizer(config_of(), {"t2i": 8}) is None
    named = config_lib.replace(config_of(), vqgan="gs://BUCKET/vqgan", codebook_size=64)
    assert preflight.tokenizer(named, {"t2i2t": 8}) is None
    assert preflight.tokenizer(named, {"t2i": 8}) == config_lib.VqganConfig(codebook_size=64)
    own = config_lib.VqganConfig(channels=8)
    (tmp_path / "config.json").write_text(config_lib.to_json(own))
    assert preflight.tokenizer(config_lib.replace(named, vqgan=str(tmp_path)), {"i2i": 8}) == own


@pytest.mark.parametrize("flags, said", [
    (["--topology=v4:2x2x1", "--t2i_batch=1023"], "--t2i_batch=1023: must be a multiple of 4 devices"),
    ([], "--topology must have a value"),
])  # fmt: skip
def test_the_command_refuses_in_one_line(flags, said):
    row = "--flagfile=launch/flagfiles/table4/row01.cfg"
    ended = subprocess.run(
        [sys.executable, "-m", "tools.preflight", row, *flags], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stderr.strip().splitlines()[-1].startswith("error: ")
    assert said in ended.stderr


def test_the_kinds_are_listed():
    ended = subprocess.run([sys.executable, "-m", "tools.preflight", "--topology=list"], cwd=ROOT, capture_output=True,
                           text=True, check=True)  # fmt: skip
    assert [line.split()[0] for line in ended.stdout.splitlines()] == ["kind", *CHIPS]
    for line in ended.stdout.splitlines()[1:]:
        assert Topology.parse(line.split()[-1]).kind == line.split()[0]
