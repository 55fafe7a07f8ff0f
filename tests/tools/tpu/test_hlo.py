"""tools.tpu.hlo on text in the compiler's form, counted by hand, and on what the compiler makes of a loop."""

import random
import re

import pytest

from itit.xla.sharding import axes
from tests.helpers.compiler import needs_compiler, program
from tools.tpu import hlo, tpu_compiler
from tools.tpu.chips import Topology

TEXT = """\
HloModule step, is_scheduled=true, entry_computation_layout={(f32[4,8]{1,0:T(8,128)})->f32[4,8]{1,0}}, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter (input: f32[64,8]) -> f32[16,8] {
  %input = f32[64,8]{1,0:T(8,128)S(3)} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0} all-reduce(%input), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice = f32[16,8]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={16,8}
}

%start (p: bf16[16,8]) -> (bf16[16,8], bf16[64,8]) {
  %p = bf16[16,8]{1,0} parameter(0)
  %gather.1 = bf16[64,8]{1,0} all-gather(%p), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %c = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (q: bf16[16,8]) -> bf16[64,8] {
  %q = bf16[16,8]{1,0} parameter(0)
  %gather.2 = bf16[64,8]{1,0} all-gather(%q), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %d = bf16[64,8]{1,0} custom-call(%gather.2), custom_call_target="AsyncCollectiveDone"
}

%body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %in = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %work = f32[4,8]{1,0} fusion(%in), kind=kLoop, calls=%add, SCOPE t2i2t synthesis.4/aten__mm CYCLES 100
  %swap = f32[4,8]{1,0} all-to-all(%work), channel_id=11, replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}
  ROOT %t = (s32[]{:T(128)}, f32[4,8]{1,0}) tuple(%in, %swap)
}

%condition (s.1: (s32[], f32[4,8])) -> pred[] {
  %s.1 = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  %limit = s32[]{:T(128)} constant(23)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[4,8], b: bf16[16,8]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0), sharding={devices=[4,1]<=[4]}
  %b = bf16[16,8]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %begin = (s32[]{:T(128)}, f32[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0}) while(%begin), condition=%condition, body=%body, metadata={op_name="while"}
  %g.0 = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) fusion(%b), kind=kCustom, calls=%start
  %between = f32[64,8]{1,0:T(8,128)S(1)} fusion(%a), calls=%add, SCOPE update.1/itit/t2i.22/aten__mm.3/mm CYCLES 5000
  %g.1 = bf16[64,8]{1,0} fusion(%b), kind=kCustom, calls=%done, SCOPE t2i.22/aten__mm
  %plain = f32[4,8]{1,0} add(%a, %a), metadata={op_name="aten__mm"} CYCLES 7
  %vast = f32[4,8]{1,0} add(%a, %a) CYCLES 9223372036854775807
  %rs = f32[16,8]{1,0} fusion(%between), kind=kCustom, calls=%all-reduce-scatter, SCOPE optimizer, EMA.2/aten__add
  %both = (f32[]{:T(128)}, f32[3072]{0:T(1024)}) all-reduce(%plain, %vast), channel_id=3, replica_groups=[1,4]<=[4]
  %away = f32[4,8]{1,0} collective-permute(%a), channel_id=4, source_target_pairs={{0,1},{1,2},{2,3}}
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""

# The attributes that count, spelled out as the compiler writes them.
TEXT = re.sub(r"SCOPE ([^\n]*?)(?= CYCLES|\n)", r'metadata={op_name="itit/\1" source_line=1}', TEXT)
TEXT = re.sub(r",? CYCLES (\d+)", r', backend_config={"flags":[],"window_config":{"estimated_cycles":"\1"}}', TEXT)

LOOP = """
HloModule loop

body {{
  state = (s32[], f32[256,256], f32[256,256]) parameter(0)
  i = s32[] get-tuple-element(state), index=0
  x = f32[256,256] get-tuple-element(state), index=1
  w = f32[256,256] get-tuple-element(state), index=2
  one = s32[] constant(1)
  next = s32[] add(i, one)
  y = f32[256,256] dot(x, w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  z = f32[256,256] sine(y)
  ROOT out = (s32[], f32[256,256], f32[256,256]) tuple(next, z, w)
}}

condition {{
  state = (s32[], f32[256,256], f32[256,256]) parameter(0)
  i = s32[] get-tuple-element(state), index=0
  limit = s32[] constant({trips})
  ROOT less = pred[] compare(i, limit), direction=LT
}}

ENTRY main {{
  x = f32[256,256] parameter(0)
  w = f32[256,256] parameter(1)
  zero = s32[] constant(0)
  start = (s32[], f32[256,256], f32[256,256]) tuple(zero, x, w)
  loop = (s32[], f32[256,256], f32[256,256]) while(start), condition=condition, body=body
  ROOT result = f32[256,256] get-tuple-element(loop), index=1
}}
"""


@pytest.fixture(scope="module")
def module():
    return hlo.Module(TEXT)


def test_time_by_part_counts_loops(module):
    assert module.visits["body"] == 23 and module.unknown_loops == []
    assert module.cycles("rest") == {"t2i2t synthesis": 23 * 100, "t2i": 5000, "rest": 7}
    assert module.without_estimate() == ["vast"]


def test_collectives(module):
    found = {(c.kind, c.size, c.group, c.part): c.count for c in module.collectives("rest")}
    assert found == {
        ("all-to-all", 128, (0, 2), "rest"): 23,
        ("all-gather", 64 * 8 * 2, (0, 1, 2, 3), "rest"): 1,  # its start and its end are one
        ("reduce-scatter", 64 * 8 * 4, (0, 1, 2, 3), "optimizer, EMA"): 1,
        ("all-reduce", 4 + 4 * 3072, (0, 1, 2, 3), "rest"): 1,
        ("collective-permute", 128, (0, 1), "rest"): 1,
    }


def test_buffers_and_parameters(module):
    assert module.parameters() == ["f32[4,8]", "bf16[16,8]"]
    assert module.largest(2)[0][:3] == (4 * 3072, "f32[3072]", "all-reduce")
    assert hlo.array_bytes("pred[3,5]") == 15 and hlo.array_bytes("f8e4m3fn[7]") == 7
    assert hlo.array_bytes("s4[7]") == 4 and hlo.array_bytes("f32[]") == 4


def test_forms_of_groups():
    assert hlo.first_group("[32,8]<=[256]") == tuple(range(8))
    assert hlo.first_group("[8,32]<=[32,8]T(1,0)") == tuple(range(0, 256, 8))


def test_a_loop_without_a_number_is_told():
    module = hlo.Module(TEXT.replace("s32[]{:T(128)} constant(23)", "s32[]{:T(128)} parameter(1)"))
    assert module.visits["body"] == 1 and module.unknown_loops == ["loop"]


def test_text_without_entry():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.Module("HloModule empty\n")


@needs_compiler
def test_trips_of_a_compiled_loop():
    square, rows, cycles = (256, 256), ("fsdp", None), {}
    for trips in random.sample(range(5, 40), 2):
        text = LOOP.format(trips=trips)
        looped = program(text, ((square, rows), (square, (None, None))), ((square, rows),))
        compiled = tpu_compiler.compile_program(looped, Topology.parse("v4:2x2x1"), axes(1, 4))
        assert compiled.error == ""
        assert sorted(compiled.module.visits.values()) == [1, trips] and compiled.module.unknown_loops == []
        cycles[trips] = compiled.module.cycles("rest")["rest"]
    (few, before), (many, after) = sorted(cycles.items())
    a_trip, rest = divmod(after - before, many - few)
    assert rest == 0 and 0 < a_trip * few <= before
