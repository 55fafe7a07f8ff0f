"""Step times on several processes, as torchrun starts them, beside the ideal: the time of one over their number."""

import json
import os
import statistics
import subprocess
import sys
import tempfile

from itit import flags, storage

WORKER = "tools.timing.step_worker"


def run(config, num_steps, counts):
    """[(number of processes, kind of device, seconds of each step)]. On processors each process has one thread.

    Raises ValueError where a run fails, with what it said.
    """
    found, environment = [], os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        flagfile = os.path.join(folder, "step.cfg")
        storage.write_bytes(flagfile, flags.to_flagfile(config).encode())
        for count in counts:
            launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"] if count > 1 else []
            command = [sys.executable, "-m", *launcher, WORKER, flagfile, str(num_steps)]
            ended = subprocess.run(command, capture_output=True, text=True, env=environment)
            said = [line for line in ended.stderr.splitlines() if "Error: " in line or line.startswith("error: ")]
            if ended.returncode:
                raise ValueError(f"{count} processes: {said[0] if said else ended.stderr[-300:]}")
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
