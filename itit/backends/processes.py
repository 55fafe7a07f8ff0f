"""The processes that torchrun starts, one a device: what they tell each other, and which of them is gone.

What torchrun tells a process stands in its environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR); whoever else sets
these, a Slurm script, say, starts a run as well.
"""

import contextlib
import datetime
import os
import re
import socket
import sys
import threading
import time

import torch
import torch.distributed as dist
from absl import logging

from itit.console import say
from itit.hosts import TIMEOUT, Hosts

_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_ANOTHER = re.compile(r"^process \d+: ")


def num_started():
    """How many processes torchrun has started, on all nodes; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TOLD) else 1


def local_index():
    """Which one of its node this process is."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def launched(config):
    """The `Processes` that torchrun has started, None without it. Inside, what several fail with one says, and all
    exit with 2.

    Args:
      config: TrainConfig, for its watchdog.
    """
    if num_started() == 1:
        yield None
        return
    store, index, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    seconds = config.watchdog_seconds if config.watchdog_factor else None
    processes = Processes(index, count, dist.PrefixStore("itit", store), seconds)
    if not processes.leads:
        logging.set_verbosity(logging.WARNING)
    try:
        yield processes
    except (ValueError, OSError) as error:
        if os.environ.get("ITIT_TRACEBACK") != "1" and not processes.is_first_to_say(str(error)):
            sys.exit(2)
        raise


class Processes(Hosts):
    """One process a device. `store`: torchrun's. `seconds`: the watchdog's, None where it is off.

    `peers`: see `Peers`. `group_store`, `timeout`: for torch's process group.
    """

    called, agrees_at_once = "process", True

    def __init__(self, index, count, store, seconds):
        super().__init__(index, count, store)
        self.group_store = dist.PrefixStore("group", store)
        self.timeout = datetime.timedelta(seconds=2 * seconds) if seconds else TIMEOUT
        names = self.gather(f"PID {os.getpid()} on {socket.gethostname()}")
        self.peers = Peers(dist.PrefixStore("peers", store.clone()), index, names, seconds)

    def any(self, value):
        told = torch.tensor(int(value))
        with self.peers.waiting():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told)

    def is_first_to_say(self, text):
        """Whether no process has said this before. What another one failed with is the same text."""
        return self._store.add(f"said/{_OF_ANOTHER.sub('', text)}", 1) == 1

    def close(self):
        super().close()
        self.peers.stop()
        if dist.is_initialized():
            dist.destroy_process_group()


class Peers:
    """Knows which of the other processes has stopped, and ends this one then, with a line that names it.

    torch's own errors name no process, or come from a thread that ends the process without a word. Here a thread of
    each process counts up a number in the store; one whose number stands still is gone, or was stopped. One that is
    alive and does not come to where the others wait for it hangs.

    Args:
      store: on a connection of its own.
      index, names: which this is, and what to call each.
      seconds: after half of them, without a sign, a process counts as gone; so that this is said before the watchdog
        ends the process, and torch's process group at twice the time. None: only after an error of the group.
    """

    def __init__(self, store, index, names, seconds):
        self._store, self._index, self._names = store, index, names
        self._patience = seconds / 2 if seconds else float("inf")
        self._interval = min(1.0, self._patience / 4)
        self._beats, self._heard = {}, dict.fromkeys(range(len(names)), time.monotonic())
        self._turn, self._since = 0, None
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def waiting(self):
        """Goes around what waits for all processes; they come to it equally often."""
        self._turn, self._since = self._turn + 1, time.monotonic()
        try:
            yield
        except RuntimeError:
            self._explain()
            raise
        finally:
            self._since = None

    def stop(self):
        """Before this process leaves with the others."""
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(self._interval):
            try:
                self._listen()
                self._look(self._patience)
            except RuntimeError as error:
                self._leave(f"torchrun is gone, or cannot be reached: {str(error).splitlines()[0]}")

    def _listen(self):
        self._store.set(f"turn/{self._index}", str(self._turn))
        for index in range(len(self._names)):
            beats = self._store.add(f"beat/{index}", int(index == self._index))
            if beats != self._beats.get(index):
                self._beats[index], self._heard[index] = beats, time.monotonic()

    def _look(self, patience):
        now, since = time.monotonic(), self._since
        for index, heard in self._heard.items():
            if now - heard > patience:
                self._leave(f"{self._name(index)} is gone or stopped: no sign of it for {now - heard:.0f} s")
        if since is not None and now - since > self._patience:
            for index in range(len(self._names)):
                if int(self._store.get(f"turn/{index}")) < self._turn:
                    self._leave(f"{self._name(index)} hangs: {self._name(self._index)} has waited for it for "
                                f"{now - since:.0f} s")  # fmt: skip

    def _explain(self):
        """After an error of the group: leaves where one of the others turns out to be gone."""
        patience, end = 5 * self._interval, time.monotonic() + 15 * self._interval
        while time.monotonic() < end and not self._ended.wait(self._interval):
            self._look(patience)

    def _name(self, index):
        return f"process {index} of {len(self._names)} ({self._names[index]})"

    def _leave(self, line):
        with self._lock:  # one line, whichever thread
            say(f"error: {line}; what was saved last is whole", sys.stderr)
            os._exit(1)  # the main thread may wait for ever
