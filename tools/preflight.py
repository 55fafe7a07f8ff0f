"""`python -m tools.preflight --flagfile=F --topology=v4:8x8x4 [--json=FILE] [--flag=value]`: will it run on this pod?

Traces the very step that the trainer would run on XLA, with no memory behind its tensors, compiles it with the TPU
compiler for that many chips, none of which need be there, and prints whether it compiles, the memory of a chip, the
predicted time by part, collectives, steps/s, model FLOPs and MFU. Needs the extra `preflight`; takes minutes.
"""

import json
import os
import pathlib
import sys
import time

from absl import flags as absl_flags

from itit import config as config_lib
from itit import flags
from itit.checks import check_batches
from itit.tasks import TASKS
from itit.train_step import tasks
from itit.training import taken
from itit.xla import sharding
from tools.timing.flops import step_flops
from tools.tpu import prediction, tpu_compiler
from tools.tpu.chips import CHIPS, Topology
from tools.tpu.step_programs import mesh_of, programs

# Before torch_xla is imported: 8 virtual devices, and the names of the parts in what is traced.
TRACING = {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": "8", "XLA_HLO_DEBUG": "1"}
KEYS = ("compiles", "hbm_gib_per_chip", "predicted_step_ms", "predicted_ici_ms", "predicted_steps_per_s", "parts_ms",
        "mfu")  # fmt: skip


def preflight(config, topology, keep=None, say=print):
    """The prediction (see `prediction.predict`) for a resolved Config. Raises ValueError for what cannot be."""
    active = tasks(config, sys.maxsize)
    check_batches(active, topology.num_chips, config.optim.num_microbatches)
    data, fsdp = mesh_of(config, topology.num_chips)
    start, compiled = time.perf_counter(), []
    say(f"tracing the step; mesh: data {data} x fsdp {fsdp}")
    traced = programs(config, active, tokenizer(config, active), (data, fsdp))
    say(f"traced {len(traced)} programs in {time.perf_counter() - start:.0f} s")
    for number, program in enumerate(traced, 1):
        say(f"compiling {number} of {len(traced)}: {program.name}, {len(program.hlo) / 2**20:.1f} MiB")
        compiled.append(tpu_compiler.compile_program(program, topology, sharding.axes(data, fsdp), keep))
        say(f"  {compiled[-1].error or 'compiled'}, {compiled[-1].seconds:.0f} s")
        if compiled[-1].error:
            break
    flops = step_flops(config, active, tokenizer(config, active))
    result = prediction.predict(compiled, topology, flops, sum(active.values()))
    return result | {"mesh": {"data": data, "fsdp": fsdp}}


def tokenizer(config, active):
    """VqganConfig of the image tokenizer that the step runs, or None where it runs none.

    The sizes are those of its folder where it can be read, else the usual ones for this codebook and picture.
    """
    if not config.data.vqgan or not any(TASKS[task].has_picture for task in active):
        return None
    path = pathlib.Path(config.data.vqgan) / "config.json"
    if path.exists():
        return config_lib.from_json(config_lib.VqganConfig, path.read_text(), path)
    return config_lib.VqganConfig(image_size=config.data.image_size, codebook_size=config.model.codebook_size)


def kinds():
    """The lines of --topology=list."""
    head = f"{'kind':6}{'axes':>5}{'HBM GiB':>9}{'bf16 TFLOP/s':>14}{'MHz':>7}{'GB/s a link':>13}  such as"
    return [head] + [
        f"{kind:6}{chip.num_axes:>5}{chip.hbm_gib:>9g}{chip.peak_flops / 1e12:>14g}{chip.mhz:>7}"
        f"{chip.link_bytes / 1e9:>13g}  {kind}:{'x'.join(['4'] * chip.num_axes)}"
        for kind, chip in CHIPS.items()
    ]


def define_flags():
    flags.define()
    absl_flags.DEFINE_string("topology", None, "Chips, such as v4:8x8x4; list: the kinds.", required=True)
    absl_flags.DEFINE_string("json", "", "File for the prediction as JSON.")
    absl_flags.DEFINE_string("modules", "", "Folder for the optimised HLO of each program.")


def main(_):
    given = absl_flags.FLAGS
    if given.topology == "list":
        print("\n".join(kinds()))
        return 0
    os.environ |= TRACING
    topology = Topology.parse(given.topology)
    config = taken.settle(flags.from_flags(), flags.places(), need=False)
    tpu_compiler.check_installed()
    if given.modules:
        os.makedirs(given.modules, exist_ok=True)
    start = time.perf_counter()
    result = preflight(config, topology, given.modules,
                       lambda text: print(f"[{time.perf_counter() - start:5.0f} s] {text}", flush=True))  # fmt: skip
    print("\n".join(prediction.lines(result)))
    if given.json:
        pathlib.Path(given.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["compiles"] and result["fits"] else 1


if __name__ == "__main__":
    define_flags()
    flags.run_main(main)
