"""Step times on several processes, as torchrun starts them, beside the ideal: the time of one over their number."""

import json
import os
import statistics
import subprocess
import sys

WORKER = "tools.timing.step_worker"


def run(flagfile, arguments, batch, num_steps, counts):
    """[(number of processes, kind of device, seconds of each step)]. On processors each process has one thread.

    Raises ValueError where a run fails, with its last line.
    """
    given, found = json.dumps([flagfile, arguments, batch, num_steps]), []
    for count in counts:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"] if count > 1 else []
        ended = subprocess.run([sys.executable, "-m", *launcher, WORKER, given], capture_output=True, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
        if ended.returncode:
            raise ValueError(f"{count} processes: {ended.stderr.strip().splitlines()[-1]}")
        found.append((count, *json.loads(ended.stdout.splitlines()[-1])))
    return found


def table(results):
    """The lines to print, a row for each number of processes; the first one is what the ideal is taken from."""
    first, _, seconds = results[0]
    alone = statistics.median(seconds) * first
    lines = [f"{'processes':>9} {'device':>7} {'seconds a step':>15} {'ideal':>7} {'of the ideal':>13}"]
    for count, kind, seconds in results:
        found, ideal = statistics.median(seconds), alone / count
        lines.append(f"{count:>9} {kind:>7} {found:>15.3f} {ideal:>7.3f} {ideal / found:>13.0%}")
    return lines
