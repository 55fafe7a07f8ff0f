"""`python -m tools.bench_host [--devices=1] [--steps=3] [--flag=value]`: what a step costs the host on XLA, both modes.

Runs the training step on virtual devices, captured (replayed) and lazy (traced anew), one after the other on the same
random ready ids, and prints the host's milliseconds of every graph until it is started: what a TPU would wait for. Only
depth counts, and how many tensors there are; widths are those of nano unless flags say otherwise, depths those of
--preset and --t5_size. Devices and host share the processor's cores here, so the devices are idle when a graph is
started. Each mode has a process of its own: the programs of both may take more mappings of memory than Linux gives one.
"""

import collections
import concurrent.futures
import dataclasses
import multiprocessing
import os
import statistics
import sys
import time

import torch
from absl import flags as absl_flags

from itit import config as config_lib
from itit import flags
from itit.backends.connect import connect
from itit.presets import MODEL_PRESETS
from itit.program import running
from itit.train_step import tasks, train_step
from itit.training import taken
from itit.training.state import make_state
from tools.timing.batches import random_batch

NARROW = {name: value for name, value in MODEL_PRESETS["nano"].items() if "depth" not in name}
VIRTUAL = {"PJRT_DEVICE": "CPU", "XLA_FLAGS": "--xla_backend_optimization_level=0 "
           "--xla_llvm_disable_expensive_passes=true"}  # fmt: skip


class Clock:
    """Runs the parts of a step by another runner, and notes how long each takes to start."""

    def __init__(self, run, wait):
        self.run, self.wait, self.unroll, self.number = run, wait, run.unroll, run.number
        self.own = run.own
        self.calls = collections.defaultdict(list)  # function's name -> seconds of each call

    def __call__(self, function, *args, updates=()):
        self.wait()
        start = time.perf_counter()
        result = self.run(function, *args, updates=updates)
        self.calls[function.__name__].append(time.perf_counter() - start)
        return result


def narrow(config, places=None):
    """The Config with the widths of nano where no flag gives others, and with no weights to read."""
    given = absl_flags.FLAGS
    widths = {name: value for name, value in NARROW.items() if not given[name].present}
    return config_lib.replace(taken.settle(config, places, need=False), vqgan="", t5_weights="", **widths).resolve()


def measure(config, mode, num_steps):
    """Function's name -> seconds of each of its calls in `num_steps` steps; seconds of the first step; the devices."""
    mesh = connect(dataclasses.replace(config.train, backend="xla", xla_mode=mode))
    state, active = make_state(config, mesh), tasks(config, sys.maxsize)
    mesh.pack(state)
    clock, started = Clock(mesh.run, mesh.wait), time.perf_counter()
    for step in range(num_steps + 1):
        host = {name: value.numpy() for name, value in random_batch(config, active, torch.device("cpu")).items()}
        batch = mesh.to_device(host)
        noises = [mesh.noise(config.train.seed, step, part) for part in range(config.optim.num_microbatches)]
        with running(clock):
            train_step(state, batch, noises, 1e-4, config, active)
        mesh.wait()
        if step == 0:
            first = time.perf_counter() - started
            clock.calls.clear()
    return dict(clock.calls), first, str(mesh)


def table(found, num_steps):
    """The lines to print. `found`: mode -> what `measure` returns."""
    captured, lazy = (found[mode][0] for mode in ("captured", "lazy"))
    rows = [f"{'graph':20}{'calls':>7}{'captured ms':>14}{'lazy ms':>12}{'lazy / captured':>18}"]
    totals = [0.0, 0.0]
    for name in captured:
        calls = len(captured[name]) // num_steps
        ms = [1e3 * statistics.median(times[name]) for times in (captured, lazy)]
        totals = [total + calls * one for total, one in zip(totals, ms, strict=True)]
        rows.append(f"{name:20}{calls:>7}{ms[0]:>14.2f}{ms[1]:>12.1f}{ms[1] / ms[0]:>18.1f}")
    rows.append(f"{'a step':20}{sum(map(len, captured.values())) // num_steps:>7}{totals[0]:>14.1f}{totals[1]:>12.1f}"
                f"{totals[1] / totals[0]:>18.1f}")  # fmt: skip
    return [*rows, "medians; first step: " + ", ".join(f"{mode} {found[mode][1]:.0f} s" for mode in found)]


def define_flags():
    flags.define()
    absl_flags.DEFINE_integer("devices", 1, "Virtual devices.", lower_bound=1)
    absl_flags.DEFINE_integer("steps", 3, "Steps timed.", lower_bound=1)


def main(_):
    given = absl_flags.FLAGS
    os.environ |= VIRTUAL | {"CPU_NUM_DEVICES": str(given.devices)}
    config, found = narrow(flags.from_flags(), flags.places()), {}
    fresh = multiprocessing.get_context("spawn")
    for mode in ("captured", "lazy"):
        with concurrent.futures.ProcessPoolExecutor(1, fresh) as process:
            found[mode] = process.submit(measure, config, mode, given.steps).result()
    depths = config.model.depth, config.model.image_decoder_depth, config.model.text_decoder_depth
    devices = found["lazy"][2]
    print(f"torch {torch.__version__}, {devices}, depths {depths}, samples {tasks(config, sys.maxsize)}")
    print("\n".join(table(found, given.steps)))


if __name__ == "__main__":
    define_flags()
    flags.run_main(main)
