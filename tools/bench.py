"""`python -m tools.bench --flagfile=A,B [--batch=4] [--steps=2] [--flag=value]`: how long a step takes, and on what.

Runs the very training step on random ready ids, with random weights of model and T5, and prints the flagfiles side by
side: seconds a step, steps/s, the time over that of the first flagfile, and the share of each part, its backward pass
included. Other flags override every flagfile: --t5_size=base where T5-XXL does not fit. The cycles run whatever their
warm-up. Random weights hardly ever end a caption: the synthesis of texts takes all its steps, its worst case.

A step of one row a task warms up, then --steps steps are timed, then one is profiled for the shares. On a GPU two whole
steps warm up, too, the second of which is recorded as a CUDA graph, and steps with their kernels started one by one
stand beside (not with --nocuda_graphs); the shares are of the kernels' time.

--processes=1,2 times the first flagfile's step on so many processes instead, with the same global batch, beside the
ideal: in turns, the quickest of all steps, and processor time, which other work on the machine hardly changes. On
processors each process has one thread.
"""

import json
import statistics
import sys
import time
from typing import NamedTuple

import torch
from absl import flags as absl_flags
from torch.profiler import ProfilerActivity, profile, record_function

from itit import config as config_lib
from itit import flagfiles, flags, storage
from itit import train_step as step_lib
from itit.backends.connect import connect
from itit.program import running
from itit.training import taken
from itit.training.state import make_state
from tools.timing import scaling
from tools.timing.batches import random_batch
from tools.timing.flops import step_flops
from tools.timing.parts import PARTS as ALL_PARTS
from tools.timing.parts import REST, VQGAN, labelled

PARTS = tuple(part for part in ALL_PARTS if part != VQGAN)  # codes are ready
PEAKS = {"H100": 989, "H200": 989, "A100": 312}  # TFLOP/s in bf16 by NVIDIA's data sheets, without sparsity
_PREFIX = "itit/"  # of the profiler's ranges that are parts
_BACKWARD = "autograd::engine::evaluate_function"


def shares(events, on_gpu):
    """Part -> its share of the profiled time, from a profile's events.

    A backward operation has the sequence number of the forward one that it undoes, which tells its part.
    """
    events = sorted((e for e in events if e.device_type.name == "CPU"), key=lambda e: e.time_range.start)
    owner = {}  # sequence number -> part; the last operation that has a number made the backward node

    def part(event):
        while event is not None:
            if event.name.startswith(_PREFIX):
                return event.name.removeprefix(_PREFIX)
            if event.name.startswith(_BACKWARD) and event.sequence_nr in owner:
                return owner[event.sequence_nr]
            event = event.cpu_parent
        return REST

    seconds = dict.fromkeys(PARTS, 0.0)
    for event in events:
        found = part(event)
        if event.sequence_nr >= 0:
            owner[event.sequence_nr] = found
        seconds[found] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {name: value / sum(seconds.values()) for name, value in seconds.items()}


class Result(NamedTuple):
    """Seconds of each step; the same with its kernels started one by one, where it was a CUDA graph; part -> share; GiB
    of a GPU that the steps took at the most, or None."""

    seconds: list
    one_by_one: list
    shares: dict
    memory: float | None


def measure(config, num_steps):
    """The Result of `num_steps` steps, its shares from a further one."""
    backend = connect(config.train)
    if backend.device.type == "xla":
        raise ValueError("--backend=xla: this measures cpu and cuda; see tools.preflight and --profile_step for TPUs")
    state, on_gpu = make_state(config, backend), backend.device.type == "cuda"
    graphs = on_gpu and config.train.cuda_graphs
    active = step_lib.tasks(config, sys.maxsize)
    batch, parts = random_batch(config, active, backend.device), config.optim.num_microbatches

    def as_it_stands(function, *args):
        return function(*args)

    def step(number, batch, whole=as_it_stands):
        noises = [backend.noise(config.train.seed, number, part) for part in range(parts)]
        rate = config.optim.learning_rate
        with running(backend.run):
            whole(step_lib.train_step, state, batch, noises, rate, config, active)
        if on_gpu:
            torch.cuda.synchronize()

    def timed(whole, warm_up):
        seconds = []
        for number in range(1, 1 + warm_up + num_steps):
            start = time.perf_counter()
            step(number, batch, whole)
            seconds.append(time.perf_counter() - start)
        return seconds[warm_up:]

    def profiled(number, batch):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with (
            profile(activities=activities) as profiler,
            labelled(state, lambda part: record_function(_PREFIX + part)),
        ):
            step(number, batch)
        return profiler

    # One row a task loads all kernels, and the profiler, whose first start takes long.
    profiled(0, {key: value[:parts] for key, value in batch.items()})
    one_by_one = timed(as_it_stands, 1) if graphs else []
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(backend.whole, 2 if graphs else int(on_gpu))
    memory = torch.cuda.max_memory_reserved() / 2**30 if on_gpu else None
    return Result(seconds, one_by_one, shares(profiled(num_steps + 1, batch).events(), on_gpu), memory)


def read_config(flagfile, arguments, batch):
    """The resolved Config of a flagfile with further arguments, each active task at `batch` rows unless that is 0.

    Of weights that it names only the sizes are taken, where they are there: random ones take the same time.

    Raises ValueError, one line, for a flagfile that is not there or holds what is no setting.
    """
    values = absl_flags.FlagValues()
    flags.define(flag_values=values)
    lines = flagfiles.read(flagfile)
    try:
        flags.parse(["bench", *lines, *arguments], values)
        config = taken.settle(flags.from_flags(flag_values=values), need=False)
    except ValueError as error:
        raise ValueError(f"{flagfile}: {error}") from None
    config = config_lib.replace(config, vqgan="", t5_weights="")
    sizes = {f"{task}_batch": batch for task in step_lib.tasks(config, sys.maxsize)} if batch else {}
    return config_lib.replace(config, **sizes).resolve()


def table(names, configs, results, device=""):
    """The lines to print: a column for each flagfile. `device`: its name, for the peak of the chip."""
    means = [statistics.mean(result.seconds) for result in results]
    actives = [step_lib.tasks(config, sys.maxsize) for config in configs]
    flops = [sum(step_flops(config, active).values()) for config, active in zip(configs, actives, strict=True)]
    rows = [
        ("", names),
        ("model", [config.model.preset for config in configs]),
        ("T5", [f"{config.t5.size}, random" for config in configs]),
        ("type", [config.train.compute_dtype for config in configs]),
        ("samples a step", [sum(active.values()) for active in actives]),
        ("seconds a step", [f"{mean:.3f}" for mean in means]),
        ("  fastest, slowest", [f"{min(seconds):.3f}, {max(seconds):.3f}" for seconds, *_ in results]),
        ("steps/s", [f"{1 / mean:.4f}" for mean in means]),
        ("model TFLOP/s", [f"{count / mean / 1e12:.3g}" for count, mean in zip(flops, means, strict=True)]),
        ("time, of the first", [f"{mean / means[0]:.2f}" for mean in means]),
    ]
    for peak in (peak for chip, peak in PEAKS.items() if chip in device):
        rows.append(("of the bf16 peak", [f"{count / mean / 1e12 / peak:.1%}"
                                          for count, mean in zip(flops, means, strict=True)]))  # fmt: skip
    if all(result.memory is not None for result in results):
        rows.append(("memory, GiB", [f"{result.memory:.1f}" for result in results]))
    if any(result.one_by_one for result in results):
        found = [statistics.mean(result.one_by_one or [0]) for result in results]
        rows += [
            ("kernels one by one", [f"{mean:.3f}" if mean else "-" for mean in found]),
            ("  of the CUDA graph's", [f"{a / b:.2f}" if a else "-" for a, b in zip(found, means, strict=True)]),
        ]
    for part in PARTS:
        found = [result.shares[part] for result in results]
        if any(found):
            rows.append((f"share of {part}", [f"{100 * share:.1f} %" if share else "-" for share in found]))
    left = max(len(label) for label, _ in rows) + 2
    widths = [max(len(str(values[i])) for _, values in rows) + 2 for i in range(len(names))]
    return [
        f"{label:{left}}" + "".join(f"{value!s:>{width}}" for value, width in zip(values, widths, strict=True))
        for label, values in rows
    ]


def several_flagfiles(argv):
    """Hands --flagfile over to a flag of our own: absl would take A,B for one file, and put A and B together."""
    return [argument.replace("--flagfile=", "--flagfiles=", 1) if i else argument for i, argument in enumerate(argv)]


def define_flags():
    flags.define()
    absl_flags.DEFINE_list("flagfiles", None, "What --flagfile=A,B becomes.", required=True)
    absl_flags.DEFINE_integer("batch", 0, "Samples a step of each task that a flagfile has; 0: its own.", lower_bound=0)
    absl_flags.DEFINE_integer("steps", 2, "Steps timed.", lower_bound=1)
    absl_flags.DEFINE_list("processes", [], "Compare so many processes, such as 1,2,4, in the place of flagfiles.")
    absl_flags.DEFINE_string("json", "", "File for the mean seconds of a step.")


def main(_):
    given = absl_flags.FLAGS
    settings = [name for name, _, _ in config_lib.fields(config_lib.Config()) if given[name].present]
    arguments = [f"--{name}={given[name].value}" for name in settings]
    configs = [read_config(flagfile, arguments, given.batch) for flagfile in given.flagfiles]
    if given.processes:
        print("\n".join(scaling.table(scaling.run(configs[0], given.steps, map(int, given.processes)))))
        return
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {gpu}, --steps={given.steps}", flush=True)
    results = [measure(config, given.steps) for config in configs]
    print("\n".join(table([flagfile.rpartition("/")[2] for flagfile in given.flagfiles], configs, results, gpu)))
    if given.json:
        pairs = zip(given.flagfiles, results, strict=True)
        found = {flagfile: {"seconds": statistics.mean(result.seconds)} for flagfile, result in pairs}
        storage.write_bytes(given.json, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    sys.argv = several_flagfiles(sys.argv)
    define_flags()
    flags.run_main(main)
