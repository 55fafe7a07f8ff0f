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
    """(kind of device, seconds of each step), the same global batch whatever the number of processes."""
    with launched(config.train) as started:
        backend = connect(config.train, started)
        state, active = make_state(config, backend), tasks(config, sys.maxsize)
        own = {task: rows // backend.hosts.count for task, rows in active.items()}
        batch, parts = random_batch(config, own, backend.device), config.optim.num_microbatches
        seconds, rate = [], config.optim.learning_rate
        for number in range(WARM_UP + num_steps):
            start = time.perf_counter()
            noises = [backend.noise(config.train.seed, number, part) for part in range(parts)]
            with running(backend.run):
                values = backend.whole(train_step, state, batch, noises, rate, config, active)
            float(values["loss"])
            seconds.append(time.perf_counter() - start)
        says = backend.hosts.says
        backend.hosts.close()
    return (backend.device.type, seconds[WARM_UP:]) if says else None


def main():
    found = measure(flags.from_flagfile(sys.argv[1]), int(sys.argv[2]))
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
