"""A process that scaling.py starts: times steps, prints JSON. Its arguments: a flagfile, how many are timed."""

import json
import sys
import time

from itit import flags
from itit.backends.connect import connect
from itit.backends.processes import launched
from itit.program import running
from itit.train_step import tasks, train_step
from itit.training.state import make_state
from tools.timing.batches import random_batch

WARM_UP = 2  # steps; the first one learns in which order gradients come


def measure(config, num_steps):
    """(kind of device, seconds of each step, processor seconds of each, of all processes), the same global batch
    whatever their number; None in all processes but the first."""
    with launched(config.train) as started:
        backend = connect(config.train, started)
        state, active = make_state(config, backend), tasks(config, sys.maxsize)
        own = {task: rows // backend.hosts.count for task, rows in active.items()}
        batch, parts = random_batch(config, own, backend.device), config.optim.num_microbatches
        seconds, busy, rate = [], [], config.optim.learning_rate
        for number in range(WARM_UP + num_steps):
            start = time.perf_counter(), time.process_time()
            noises = [backend.noise(config.train.seed, number, part) for part in range(parts)]
            with running(backend.run):
                values = backend.whole(train_step, state, batch, noises, rate, config, active)
            float(values["loss"])
            seconds.append(time.perf_counter() - start[0])
            busy.append(time.process_time() - start[1])
        busy = [sum(steps) for steps in zip(*backend.hosts.gather(busy), strict=True)]
        backend.hosts.close()
    return (backend.device.type, seconds[WARM_UP:], busy[WARM_UP:]) if backend.hosts.leads else None


def main():
    found = measure(flags.from_flagfile(sys.argv[1]), int(sys.argv[2]))
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
