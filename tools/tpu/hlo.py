"""What the text of an optimised HLO module tells: time by part, collectives, largest buffers.

Time is the TPU compiler's own estimate, `estimated_cycles` of each instruction, times the trips of the loops around it.
Collectives and copies carry none. A part is a name of `parts.PARTS` or another, that the trace wrote into
`op_name` as a scope `itit/PART`; the innermost counts.
"""

import collections
import dataclasses
import functools
import math
import re

from tools.tpu.ici import KINDS
from tools.tpu.sharding_text import iota, numbers

SCOPE = "itit/"
_SCOPE = re.compile(re.escape(SCOPE) + r"([^/\"]+?)(?:\.\d+)?/")
_ASSIGNED = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(\{\{[\d,]+\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
NO_ESTIMATE = 2**62  # the compiler writes the largest number
_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16}


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    type: str  # of the result, as written
    op: str
    operands: str
    rest: str  # attributes


@dataclasses.dataclass(frozen=True)
class Collective:
    """size: bytes a chip, as `ici.seconds` takes them. group: device ids of the first group. count: times a call."""

    kind: str
    size: int
    group: tuple[int, ...]
    part: str
    count: int


class Module:
    """A parsed module: computation name -> its instructions, and the name of the entry."""

    def __init__(self, text):
        self.computations, self.entry = {}, None
        for line in text.splitlines():
            if line.endswith("{") and " = " not in line.split("(", 1)[0] and not line.startswith(" "):
                words = line.split()
                if words[0] == "HloModule":
                    continue
                name = words[words[0] == "ENTRY"].split("(")[0].lstrip("%")
                current = self.computations[name] = []
                self.entry = name if words[0] == "ENTRY" else self.entry
            elif match := _ASSIGNED.match(line):
                current.append(_instruction(match[1], line[match.end() :]))
        if self.entry is None:
            raise ValueError("no ENTRY in the text of the module")

    @functools.cached_property
    def visits(self):
        """Computation -> how often a call of the module runs it. Bodies of fusions are left out."""
        counts, self.unknown_loops = collections.Counter(), []

        def visit(name, times):
            counts[name] += times
            for instruction in self.computations[name]:
                for called, trips in self._runs(instruction):
                    visit(called, times * trips)

        visit(self.entry, 1)
        return counts

    def _runs(self, instruction):
        """(computation, times) that an instruction runs as instructions of their own."""
        called = dict(_CALLED.findall(instruction.rest))
        if instruction.op == "while":
            return [(called["body"].lstrip("%"), self._trips(instruction, called["condition"].lstrip("%")))]
        if instruction.op == "conditional":  # the costliest branch is not known here: the first stands for all
            names = re.findall(r"%?([\w.\-]+)", called.get("branch_computations", ""))
            return [(names[0], 1)] if names else []
        if instruction.op == "call":
            return [(called["to_apply"].lstrip("%"), 1)]
        if instruction.op == "async-start":
            return [(called["calls"].lstrip("%"), 1)]
        return []

    def _trips(self, instruction, condition):
        """Trips of a loop: annotated, or the constant that its condition compares with."""
        if match := _TRIPS.search(instruction.rest):
            return int(match[1])
        inside = [condition]
        for part in self.computations[condition]:
            inside += [name.lstrip("%") for key, name in _CALLED.findall(part.rest) if key == "calls"]
        constants = {int(part.operands) for name in inside for part in self.computations[name]
                     if part.op == "constant" and re.fullmatch(r"\d+", part.operands)}  # fmt: skip
        if not constants:
            self.unknown_loops.append(instruction.name)
        return max(constants, default=1)

    # ------------------------------------------------------------------------------------------ time

    def cycles(self, default):
        """Part -> cycles of a call; `default` is the part of what lies in no scope."""
        found = collections.Counter()
        for name, times in self.visits.items():
            for instruction in self.computations[name]:
                match = _CYCLES.search(instruction.rest)
                if match and int(match[1]) < NO_ESTIMATE:
                    found[part_of(instruction.rest, default)] += times * int(match[1])
        return dict(found)

    def without_estimate(self):
        """Names of instructions that the compiler says it cannot estimate: they count as no time."""
        return [i.name for name in self.visits for i in self.computations[name]
                if (match := _CYCLES.search(i.rest)) and int(match[1]) >= NO_ESTIMATE]  # fmt: skip

    # ------------------------------------------------------------------------------------------ collectives

    def collectives(self, default):
        """Every collective of a call, equal ones together."""
        found = collections.Counter()
        for name, times in self.visits.items():
            seen = set()  # one that runs beside others stands in several fusions, under one channel
            for instruction in self.computations[name]:
                for moving, scatters in self._moving(instruction):
                    channel = _CHANNEL.search(moving.rest)
                    if channel and channel[1] in seen:
                        continue
                    seen.add(channel[1] if channel else None)
                    kind = "reduce-scatter" if scatters else moving.op.removesuffix("-start")
                    part = part_of(moving.rest, part_of(instruction.rest, default))
                    found[kind, _size(moving, moving.op.removesuffix("-start")), _group(moving), part] += times
        return [Collective(*key, count) for key, count in found.items()]

    def _moving(self, instruction):
        """Collectives in an instruction; with True the all-reduce that, sliced, is the compiler's reduce-scatter."""
        if instruction.op.removesuffix("-start") in KINDS:
            yield instruction, False
        if instruction.op == "fusion":
            called = dict(_CALLED.findall(instruction.rest))["calls"].lstrip("%")
            for inner in self.computations[called]:
                if inner.op.removesuffix("-start") in KINDS:
                    yield inner, inner.op == "all-reduce" and called.startswith("all-reduce-scatter")

    # ------------------------------------------------------------------------------------------ buffers

    def parameters(self):
        """Types of the parameters, a chip's share: ["f32[96,3072]", ...]."""
        return [array for instruction in self.computations[self.entry] if instruction.op == "parameter"
                for array in _arrays(instruction.type)]  # fmt: skip

    def largest(self, number=5):
        """The largest results in HBM: (bytes, type, op, op_name) each, equal types once."""
        found = {}
        for name in self.visits:
            for instruction in self.computations[name]:
                if instruction.op in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
                    continue
                for array in _arrays(instruction.type):
                    match = _OP_NAME.search(instruction.rest)
                    found.setdefault(array, (array_bytes(array), array, instruction.op, match[1] if match else ""))
        return sorted(found.values(), reverse=True)[:number]


def part_of(rest, default):
    """The part whose scope an instruction lies in."""
    match = _OP_NAME.search(rest)
    scopes = _SCOPE.findall(match[1]) if match else []
    return scopes[-1] if scopes else default


def _instruction(name, text):
    """`text` is what follows " = "."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    start = text.index("(", end)
    close = _closing(text, start)
    return Instruction(name, text[:end], text[end:start].strip(), text[start + 1 : close], text[close + 1 :])


def _closing(text, start):
    """Index of the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"no closing bracket: {text[:80]}")


def _arrays(text):
    return [match[0] for match in _ARRAY.finditer(text)]


def array_bytes(array):
    """`bf16[8,128]` -> 2048. Tiles that pad it are not counted."""
    kind, dims = _ARRAY.match(array).groups()
    width = _BYTES.get(kind) or (1 if kind.startswith("f8") else int(re.search(r"\d+", kind)[0]) / 8)
    return math.ceil(width * math.prod(int(n) for n in dims.split(",") if n))


def _size(instruction, kind):
    """Bytes a chip of a collective: its whole result for all-gather, its whole operand for the others.

    The result of a -start is (operand, result, ...) or the result; for all but all-gather and reduce-scatter both have
    the same size.
    """
    sizes = [array_bytes(array) for array in _arrays(instruction.type)]
    if instruction.op.endswith("-start") and instruction.type.startswith("(") and kind != "all-reduce":
        sizes = [max(sizes)]
    if kind == "reduce-scatter":
        return sum(sizes) * len(_group(instruction))
    return sum(sizes)


def _group(instruction):
    """Device ids of the first group."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", instruction.rest):
        return tuple(sorted({int(match[1]), int(match[2])}))
    match = _GROUPS.search(instruction.rest)
    if not match:
        return ()
    if match[1].startswith("{{"):
        return numbers(match[1][2:-1])
    return first_group(match[1])


def first_group(text):
    """`[32,8]<=[256]`, `[8,32]<=[32,8]T(1,0)` -> the ids of the first of 32 or 8 groups."""
    shape, reshape, order = re.fullmatch(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    size = numbers(shape)[-1]
    return iota(reshape, order)[:size]
