"""One function over many tasks: in processes of this machine, on a Ray cluster, or a host's share of them.

A task is a JSON value, and so is its result, which is small: bytes go from a task straight to the storage. Tasks are
idempotent: one that was killed, or done twice, leaves the same.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import time

from itit import storage
from itit.config import knob
from itit.console import say
from tools.spread import workers

FEW = 4  # tasks a process: with fewer, one process takes them all and deals out what they are made of
POLLS = (0.2, 10.0)  # seconds between two looks for what other hosts do, at first and at last


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Where tasks are done."""

    distributor: str = knob("local", "Where shards are made: on this machine, or as tasks of a Ray cluster that runs "
                            "(RAY_ADDRESS, or that of this machine).", ("local", "ray"))  # fmt: skip
    task_needs: str = knob("CPU:1", "What a shard takes of a Ray cluster while it is made: CPU:4,GPU:1 or CPU:8,TPU:4.")
    host_index: int = knob(0, "Without Ray: which of the hosts this is, from 0. Each is called with the same flags.")
    num_hosts: int = knob(1, "Without Ray: hosts that share the shards, over a storage that all of them see.")

    def check(self):
        """Raises ValueError naming the flag."""
        if self.num_hosts < 1:
            raise ValueError(f"--num_hosts={self.num_hosts}: must be at least 1")
        if not 0 <= self.host_index < self.num_hosts:
            raise ValueError(f"--host_index={self.host_index}: must be from 0 to --num_hosts={self.num_hosts} less one")
        if self.distributor == "ray" and self.num_hosts > 1:
            raise ValueError(f"--num_hosts={self.num_hosts}: not with --distributor=ray, which knows its hosts")
        self.needs()

    def needs(self):
        """--task_needs: name -> number. Raises ValueError."""
        try:
            found = {name.strip(): float(count) for name, count in (p.split(":") for p in self.task_needs.split(","))}
        except ValueError:
            found = {}
        if not found or not all(found) or not all(0 < count < 1e6 for count in found.values()):
            raise ValueError(f"--task_needs={self.task_needs}: must be written as CPU:4 or CPU:4,GPU:1")
        return found

    @property
    def suffix(self):
        """Of a name that each host has for itself; the first, or only one has none."""
        return f".{self.host_index}" if self.host_index else ""

    def mine(self, tasks):
        """This host's share of a list."""
        return tasks[self.host_index :: self.num_hosts]


def results(function, tasks, distribution, num_workers, advance=None):
    """Yields the result of each task, on Ray as they are done, else in order.

    Args:
      function: (list of tasks, number of processes that it may start, `advance`) -> iterable of a result each, in
        order; of a module that processes can import, or a `functools.partial` of one.
      num_workers: processes on this machine; 0: one a processor.
      advance: for a function that works in this process, to tell how far it is.
    """
    num_workers = num_workers or os.cpu_count() or 1
    if distribution.distributor == "ray":
        # It takes seconds to load, and not every machine has it.
        from tools.spread import on_ray

        yield from on_ray.results(functools.partial(_one, function), tasks, distribution.needs())
    elif len(tasks) < FEW * num_workers:
        yield from function(tasks, num_workers, advance) if tasks else ()
    else:
        yield from workers.ordered(functools.partial(_one, function), tasks, num_workers)


def _one(function, task):
    return next(iter(function([task], 1, None)))


class Stage:
    """Tasks whose results are kept as FOLDER/NAME-00000.json, so that none is done again; where hosts meet.

    Args:
      function: as `results` takes it.
      tasks: the same on every host.
    """

    def __init__(self, folder, name, function, tasks, distribution, num_workers):
        self._folder, self._name, self._function, self._tasks = folder, name, function, tasks
        self._distribution, self._num_workers = distribution, num_workers
        self.found = self._kept(self._there())

    def run(self, seen=lambda result: None, wait=True, advance=None):
        """Does this host's share of what is not done. Returns the list of all results, in order.

        Args:
          seen: called with each result, also of those that were there.
          wait: for the other hosts; else their results may be None.
          advance: see `results`.
        """
        for result in self.found.values():
            seen(result)
        numbers = [number for number in self._distribution.mine(range(len(self._tasks))) if number not in self.found]
        function = functools.partial(_keeping, self._function, functools.partial(_path, self._folder, self._name))
        todo = [(number, self._tasks[number]) for number in numbers]
        for number, result in results(function, todo, self._distribution, self._num_workers, advance):
            self.found[number] = result
            seen(result)
        if wait:
            self._wait(seen)
        return [self.found.get(number) for number in range(len(self._tasks))]

    def _wait(self, seen):
        def missing():
            new = self._kept(self._there() - set(self.found))
            for result in new.values():
                seen(result)
            self.found |= new
            return len(self._tasks) - len(self.found)

        wait_for(lambda: not missing(), f"their part of {len(self._tasks)} tasks ({self._name})")

    def _there(self):
        start = f"{self._name}-"
        names = (name for name in storage.list_dir(self._folder) if name.startswith(start) and name.endswith(".json"))
        return {int(name[len(start) : -len(".json")]) for name in names}

    def _kept(self, numbers):
        numbers = sorted(numbers)
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            texts = pool.map(lambda number: storage.read_bytes(_path(self._folder, self._name, number)), numbers)
            return dict(zip(numbers, map(json.loads, texts), strict=True))


def wait_for(is_there, what):
    """Returns when `is_there()` is true, which other hosts make so; says what is waited for where it is not at once."""
    pause = POLLS[0]
    while not is_there():
        if pause == POLLS[0]:
            say(f"waiting for other hosts: {what}")
        time.sleep(pause)
        pause = min(2 * pause, POLLS[1])


def _path(folder, name, number):
    return storage.join(folder, f"{name}-{number:05d}.json")


def _keeping(function, path, tasks, num_workers, advance):
    """`function`, whose results are written down before they are told. `tasks`: (number, task)."""
    numbers, tasks = zip(*tasks, strict=True)
    for number, result in zip(numbers, function(list(tasks), num_workers, advance), strict=True):
        storage.write_bytes(path(number), json.dumps(result).encode())
        yield number, result
