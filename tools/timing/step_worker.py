"""A process that scaling.py starts: times training steps, prints JSON. Called with JSON as `scaling.run` makes it."""

import json
import sys
import time

from itit.backends.connect import connect
from itit.backends.processes import launched
from itit.program import running
from itit.train_step import tasks, train_step
from itit.training.state import make_state
from tools.timing.batches import random_batch, read_config

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
    flagfile, arguments, batch, num_steps = json.loads(sys.argv[1])
    found = measure(read_config(flagfile, arguments, batch), num_steps)
    if found:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
