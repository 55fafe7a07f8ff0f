"""`python -m tools.memory --flagfile=F [--samples=32,64] [--gib=76] [--flag=value]`: does a step fit on a GPU?

Runs the very training step on tensors without numbers and counts those that live at the same time; no GPU need be
there. Prints what is kept, the most that there is in a step with so many samples of each task, as it is and with
--recompute_blocks, and how many fit into --gib. Of 80 GiB some 76 are for tensors: the rest is what CUDA and the
libraries keep, and gaps. The cycles run whatever their warm-up, on ready ids.
"""

import sys

from absl import flags as absl_flags

from itit import config as config_lib
from itit import flags
from itit.train_step import tasks
from itit.training import taken
from tools.timing import memory

GIB = 1 << 30


def measure(config, samples):
    """The Memory of a step with so many samples of each task that the config has."""
    active = dict.fromkeys(tasks(config, sys.maxsize), samples)
    # Every decoding step takes the same.
    return memory.step_memory(config_lib.replace(config, num_decode_steps=2, synth_decode_steps=2), active)


def largest(config, limit, first=8):
    """The largest number of samples of each task whose step takes at most `limit` bytes; 0 where none does.

    The peak grows evenly, but for rounding: a guess, then steps from there.
    """
    part = config.optim.num_microbatches
    low, high = first * part, 2 * first * part
    peaks = {count: measure(config, count).peak for count in (low, high)}
    slope = (peaks[high] - peaks[low]) / (high - low)
    count = max(0, int((limit - peaks[low]) / slope / part) * part + low)
    while count and measure(config, count).peak > limit:
        count -= part
    while measure(config, count + part).peak <= limit:
        count += part
    return count


def report(config, samples, limit, say=print):
    """Prints it, line after line."""
    config = config_lib.replace(config, vqgan="", t5_weights="")
    for recompute in (False, True):
        config = config_lib.replace(config, recompute_blocks=recompute)
        if not recompute:
            found = measure(config, config.optim.num_microbatches)
            say(f"ITIT-{config.model.preset}, T5 {config.t5.size}, {config.train.compute_dtype}: weights "
                f"{found.model / GIB:.1f} GiB, optimizer and averages {found.state / GIB:.1f}, text encoder "
                f"{found.text_encoder / GIB:.1f}")  # fmt: skip
        say("with --recompute_blocks:" if recompute else "as it is:")
        for count in samples:
            say(f"  {count} samples of each task: {measure(config, count).peak / GIB:.1f} GiB")
        say(f"  {limit / GIB:g} GiB: {largest(config, limit)} samples of each task")


def main(_):
    given = absl_flags.FLAGS
    config = taken.settle(flags.from_flags(), need=False)
    report(config, [int(count) for count in given.samples], given.gib * GIB)


if __name__ == "__main__":
    flags.define()
    absl_flags.DEFINE_list("samples", ["32", "64"], "Samples of each task.")
    absl_flags.DEFINE_float("gib", 76.0, "Memory for tensors.", lower_bound=0.1)
    flags.run_main(main)
