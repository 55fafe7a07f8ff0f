"""tools.tpu.prediction: sums over programs, counted by hand."""

import pytest

from tools.tpu import ici, prediction
from tools.tpu.chips import Topology
from tools.tpu.hlo import Module
from tools.tpu.tpu_compiler import Compiled

TRAY = Topology.parse("v4:2x2x1")
GROUP = "channel_id=1, replica_groups=[1,4]<=[4]"


def module(cycles, scope="", extra="", parameters=("f32[256,1024]",)):
    lines = [f"  %p.{i} = {array}{{1,0}} parameter({i})" for i, array in enumerate(parameters)]
    name = f'metadata={{op_name="{scope}aten__mm"}}, ' if scope else ""
    lines.append(f'  %f = f32[8]{{0}} add(%p.0), {name}backend_config={{"estimated_cycles":"{cycles}"}}')
    return Module("HloModule m\n\nENTRY %main () -> f32[8] {\n" + "\n".join(lines) + f"\n{extra}\n}}\n")


def compiled(name, calls, made, **memory):
    sizes = dict.fromkeys(("argument", "output", "alias", "temp", "generated_code"), 0) | memory
    return Compiled(name, calls, "", sizes, made, 10.0, 1.5)


MIB = 2**20
PROGRAMS = [
    compiled("prepare", 1, module(1050, parameters=("f32[256,1024]", "bf16[512,1024]")), argument=2 * MIB, temp=3 * MIB,
             output=2 * MIB, generated_code=MIB),
    compiled("decode_step", 24, module(2100, extra=f"  %g = f32[1024]{{0}} all-gather(%p.0), {GROUP}"),
             argument=MIB, temp=MIB, generated_code=MIB),
    compiled("update", 1, module(10500, "itit/t2i.3/", parameters=("f32[256,1024]", "f32[256,1024]", "s32[]")),
             argument=2 * MIB + 512, output=2 * MIB + 4, alias=2 * MIB, temp=6 * MIB, generated_code=2 * MIB),
]  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return prediction.predict(PROGRAMS, TRAY, {"t2i": 3e9, "VQGAN": 1e9}, 64)


def test_time_by_part(result):
    # 1050 MHz: 1050 cycles are a microsecond.
    expected = {"t2i": 0.01, "t2i2t synthesis": 24 * 0.002, "rest": 0.001}
    assert result["parts_ms"] == pytest.approx(expected)
    assert list(result["parts_ms"]) == [part for part in prediction.PARTS if part in expected]
    assert result["predicted_step_ms"] == pytest.approx(sum(expected.values()))
    assert result["dispatches_per_step"] == 26


def test_collectives(result):
    once = 1e3 * ici.seconds(TRAY, "all-gather", 4096, (0, 1, 2, 3))
    assert result["collectives"] == [{"kind": "all-gather", "chips": 4, "count": 24, "bytes": 24 * 3072,
                                      "ms": pytest.approx(24 * once)}]  # fmt: skip
    assert result["predicted_ici_ms"] == pytest.approx(24 * once)


def test_memory(result):
    # One f32[256,1024] is in all programs, a second in the last; a MiB each, as the bf16 one; 508 bytes of padding.
    expected = {"arguments": 3 * MIB + 4 + 508, "results": 4, "temporaries": 6 * MIB, "code": 4 * MIB}
    assert result["hbm_gib_by_kind"] == pytest.approx({kind: size / 2**30 for kind, size in expected.items()})
    assert result["hbm_gib_per_chip"] == pytest.approx(sum(expected.values()) / 2**30)
    assert result["hbm_gib_limit"] == 32 and result["fits"]


def test_speed(result):
    seconds = (result["predicted_step_ms"] + result["predicted_ici_ms"]) / 1e3
    assert result["predicted_steps_per_s"] == pytest.approx(1 / seconds)
    assert result["predicted_samples_per_s"] == pytest.approx(64 / seconds)
    assert result["mfu"] == pytest.approx(4e9 / seconds / (4 * 275e12))


def test_the_table_tells_all(result):
    text = "\n".join(prediction.lines(result))
    for word in ("compiles", "t2i2t synthesis", "all-gather, 4", "VQGAN", "MFU", "26 dispatches", "64 samples"):
        assert word in text
    assert "NEED MORE" not in text


def test_too_much_for_a_chip():
    big = compiled("update", 1, module(1), argument=31 * 2**30)
    result = prediction.predict([big], TRAY, {}, 64)
    assert result["compiles"] and not result["fits"]
    assert "NEED MORE MEMORY" in "\n".join(prediction.lines(result))


def test_what_does_not_compile():
    failed = PROGRAMS[2]._replace(error="out of memory: 40G used of 30.75G hbm a chip", module=None, memory={})
    result = prediction.predict([PROGRAMS[0], failed], TRAY, {"t2i": 1e9}, 64)
    assert not result["compiles"] and "predicted_step_ms" not in result
    assert prediction.lines(result)[1] == "does not compile: update: out of memory: 40G used of 30.75G hbm a chip"


def test_what_was_not_counted_is_said():
    odd = compiled("update", 1, module(2**63 - 1))
    result = prediction.predict([odd], TRAY, {"t2i": 1e9}, 64)
    assert result["not_estimated"] == ["update: f"] and result["predicted_step_ms"] == 0
    assert any("does not estimate" in line for line in prediction.lines(result))
