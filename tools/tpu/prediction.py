"""What the compiled programs of a step add up to: memory, time by part, collectives, speed. Pure Python.

Time is a lower bound and a way to compare variants: the compiler's own cycles, which leave out collectives and copies,
and beside them our estimate of the links (`ici.py`), as if nothing of it were hidden behind arithmetic. Neither has
been held against a TPU.
"""

import collections

from tools.timing.parts import I2T2I, PARTS, REST, SYNTHESIS, T2I2T
from tools.tpu import ici
from tools.tpu.hlo import array_bytes

GIB = 2**30
# A program's name -> the part of what lies in no scope of its own.
_DEFAULTS = {"decode": T2I2T + SYNTHESIS, "greedy": I2T2I + SYNTHESIS}


def default_part(name):
    return next((part for start, part in _DEFAULTS.items() if start in name), REST)


def predict(compiled, topology, flops, samples):
    """All of it, as the JSON holds it.

    Args:
      compiled: tpu_compiler.Compiled of each program.
      flops: part -> model FLOPs of the whole step.
      samples: of a step.
    """
    errors = {c.name: c.error for c in compiled if c.error}
    result = {"compiles": not errors, "errors": errors, "topology": str(topology), "chips": topology.num_chips,
              "hbm_gib_limit": topology.chip.hbm_gib, "flops": flops, "samples_per_step": samples,
              "dispatches_per_step": sum(c.calls for c in compiled),
              "compile_seconds": sum(c.seconds for c in compiled),
              "compile_host_gib": max(c.host_gib for c in compiled)}  # fmt: skip
    if errors:
        return result
    memory, parts = hbm_gib(compiled), parts_ms(compiled, topology)
    moves = collectives(compiled, topology)
    step, links = sum(parts.values()), sum(move["ms"] for move in moves)
    per_second = 1e3 / (step + links) if step + links else 0.0
    return result | {
        "fits": sum(memory.values()) <= topology.chip.usable_gib,
        "hbm_gib_per_chip": sum(memory.values()),
        "hbm_gib_by_kind": memory,
        "predicted_step_ms": step,
        "predicted_ici_ms": links,
        "predicted_steps_per_s": per_second,
        "predicted_samples_per_s": samples * per_second,
        "mfu": sum(flops.values()) * per_second / (topology.num_chips * topology.chip.peak_flops),
        "parts_ms": parts,
        "collectives": moves,
        "programs": [_program(c, topology) for c in compiled],
        "not_estimated": [f"{c.name}: {name}" for c in compiled for name in c.module.without_estimate()],
        "unknown_loops": [f"{c.name}: {name}" for c in compiled for name in c.module.unknown_loops],
    }


def _program(compiled, topology):
    cycles = sum(compiled.module.cycles(REST).values())
    memory = {kind: size / GIB for kind, size in compiled.memory.items()}
    return {"name": compiled.name, "calls": compiled.calls, "ms_a_call": cycles / topology.chip.mhz / 1e3,
            "memory_gib": memory, "seconds": compiled.seconds, "host_gib": compiled.host_gib,
            "largest": [list(buffer) for buffer in compiled.module.largest()]}  # fmt: skip


def parts_ms(compiled, topology):
    """Part -> milliseconds of a step, in the order of PARTS; parts that take none are left out."""
    cycles = collections.Counter()
    for program in compiled:
        for part, number in program.module.cycles(default_part(program.name)).items():
            cycles[part] += program.calls * number
    names = [*PARTS, *sorted(set(cycles) - set(PARTS))]
    return {part: cycles[part] / topology.chip.mhz / 1e3 for part in names if cycles[part]}


def collectives(compiled, topology):
    """Collectives of a step by kind and number of chips in a group, the longest first."""
    found = {}
    for program in compiled:
        for one in program.module.collectives(default_part(program.name)):
            times = program.calls * one.count
            row = found.setdefault((one.kind, len(one.group)), {"count": 0, "bytes": 0, "ms": 0.0})
            row["count"] += times
            row["bytes"] += times * ici.moved(one.kind, one.size, max(len(one.group), 1))
            row["ms"] += times * 1e3 * ici.seconds(topology, one.kind, one.size, one.group)
    rows = [{"kind": kind, "chips": chips} | row for (kind, chips), row in found.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def hbm_gib(compiled):
    """Memory a chip by kind, of the programs of a step together.

    Arguments that several programs share, by type, count once: weights and moments stay while any program runs.
    Temporaries, and results that are no updated arguments, are of the program with most.
    """
    arguments, padding = collections.Counter(), 0
    for program in compiled:
        types = collections.Counter(program.module.parameters())
        arguments |= types
        padding = max(padding, program.memory["argument"] - _bytes(types))
    worst = max(compiled, key=lambda c: c.memory["temp"] + c.memory["output"] - c.memory["alias"]).memory
    kinds = {"arguments": _bytes(arguments) + padding, "results": worst["output"] - worst["alias"],
             "temporaries": worst["temp"], "code": sum(c.memory["generated_code"] for c in compiled)}  # fmt: skip
    return {kind: size / GIB for kind, size in kinds.items()}


def _bytes(types):
    return sum(count * array_bytes(array) for array, count in types.items())


# ---------------------------------------------------------------------------------------------- the table


def lines(result):
    """The lines to print."""
    head = [f"{result['topology']}: {result['chips']} chips, {result['samples_per_step']} samples a step, "
            f"{result['dispatches_per_step']} dispatches a step"]  # fmt: skip
    if not result["compiles"]:
        return head + [f"does not compile: {name}: {error}" for name, error in result["errors"].items()]
    step, links = result["predicted_step_ms"], result["predicted_ici_ms"]
    fits = "" if result["fits"] else "; its programs together NEED MORE MEMORY than a chip has"
    rows = head + ["compiles" + fits, "", "memory a chip, GiB"]
    rows += [f"  {kind:32}{size:10.2f}" for kind, size in result["hbm_gib_by_kind"].items()]
    rows += [f"  {'all, of ' + format(result['hbm_gib_limit'], 'g'):32}{result['hbm_gib_per_chip']:10.2f}", "",
             "predicted ms a step, by the compiler's cycles (a lower bound)"]  # fmt: skip
    rows += [f"  {part:32}{ms:10.2f}" for part, ms in result["parts_ms"].items()]
    rows += [f"  {'all':32}{step:10.2f}", "", "collectives a step, and our estimate of the links (a lower bound)",
             f"  {'kind, chips in a group':32}{'count':>10}{'MiB a chip':>12}{'ms':>10}"]  # fmt: skip
    for row in result["collectives"]:
        label = f"{row['kind']}, {row['chips']}"
        rows.append(f"  {label:32}{row['count']:>10}{row['bytes'] / 2**20:>12.1f}{row['ms']:>10.2f}")
    rows += [f"  {'all':32}{links:>32.2f}", "",
             f"predicted, links not hidden: {result['predicted_steps_per_s']:.3f} steps/s, "
             f"{result['predicted_samples_per_s']:.0f} samples/s, MFU {100 * result['mfu']:.1f} %",
             f"model TFLOPs a step: {sum(result['flops'].values()) / 1e12:.1f}"]  # fmt: skip
    rows += [f"  {part:32}{number / 1e12:10.1f}" for part, number in result["flops"].items()]
    for what, names in (("instructions that the compiler does not estimate, counted as 0", result["not_estimated"]),
                        ("loops whose trips could not be read, counted once", result["unknown_loops"])):  # fmt: skip
        rows += [f"{what}: {len(names)}, such as {names[0]}"] if names else []
    return rows + [
        "",
        f"compiling took {result['compile_seconds']:.0f} s and {result['compile_host_gib']:.1f} GiB here",
    ]
