"""Step times on several processes, as torchrun starts them, beside the ideal: the time of one over their number."""

import json
import os
import subprocess
import sys
import tempfile

from itit import flags, storage

WORKER = "tools.timing.step_worker"
ROUNDS = 3  # in turns: other work on the machine meets all alike


def run(config, num_steps, counts, rounds=ROUNDS):
    """{number of processes: (kind of device, seconds of each step, processor seconds of each, of all processes)}.

    On processors each process has one thread. Raises ValueError where a run fails, with what it said.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        flagfile = os.path.join(folder, "step.cfg")
        storage.write_bytes(flagfile, flags.to_flagfile(config).encode())
        for count in [*counts] * rounds:
            kind, seconds, busy = _run(count, flagfile, num_steps)
            _, *before = found.get(count, (kind, [], []))
            found[count] = (kind, before[0] + seconds, before[1] + busy)
    return found


def _run(count, flagfile, num_steps):
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m"] if count > 1 else []
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, WORKER, flagfile, str(num_steps)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = [line for line in ended.stderr.splitlines() if "Error: " in line or line.startswith("error: ")]
    if ended.returncode:
        raise ValueError(f"{count} processes: {said[0] if said else ended.stderr[-300:]}")
    return json.loads(ended.stdout.splitlines()[-1])


def table(results):
    """The lines to print, a row for each number of processes; the first one is what the ideal is taken from. Of all
    steps the quickest counts: what it has beyond that is other work's."""
    (first, (_, *alone)), *_ = results.items()
    alone, work = min(alone[0]) * first, min(alone[1])
    lines = [f"{'processes':>9} {'device':>7} {'seconds a step':>15} {'ideal':>7} {'of the ideal':>13}"
             f" {'processor seconds':>18} {'of the ideal':>13}"]  # fmt: skip
    for count, (kind, seconds, busy) in results.items():
        found, ideal = min(seconds), alone / count
        lines.append(f"{count:>9} {kind:>7} {found:>15.3f} {ideal:>7.3f} {ideal / found:>13.0%} {min(busy):>18.3f} "
                     f"{work / min(busy):>13.0%}")  # fmt: skip
    return lines
