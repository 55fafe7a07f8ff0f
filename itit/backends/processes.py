"""The processes that torchrun starts, one a device: what they tell each other, and which of them is gone.

What torchrun tells a process stands in its environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR); whoever else sets
these, a Slurm script, say, starts a run as well.
"""

import contextlib
import datetime
import math
import os
import re
import secrets
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
_LEFT = 1 << 40  # beats of a process that is done
_OF_ANOTHER = re.compile(r"^process \d+: ")


def num_started():
    """How many processes torchrun has started, on all nodes; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _TOLD) else 1


def index_started():
    """Which of them this process is."""
    return int(os.environ["RANK"]) if num_started() > 1 else 0


def own_device(kind):
    """The torch.device of this process, one of its node's of a kind, which becomes torch's current one.

    Raises ValueError where torchrun has started more processes than there are devices.
    """
    if kind == "cpu" or num_started() == 1:
        return torch.device(kind)
    index, count = int(os.environ.get("LOCAL_RANK", 0)), torch.accelerator.device_count()
    if index >= count:
        raise ValueError(f"--nproc_per_node: must be at most {count}: this machine has no {kind}:{index}")
    torch.accelerator.set_device_index(index)
    return torch.device(kind, index)


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
    processes = Processes(index, count, dist.PrefixStore(meet(store, index, count), store), seconds)
    if not processes.leads:
        logging.set_verbosity(logging.WARNING)
    try:
        yield processes
    except (ValueError, OSError) as error:
        if os.environ.get("ITIT_TRACEBACK") != "1" and not processes.is_first_to_say(str(error)):
            sys.exit(2)
        raise


def meet(store, index, count):
    """A name, the same for all processes that were started together and for no others: torchrun that begins again keeps
    the store, and what processes told each other before is still there.

    Each says hello by a name of its own, and process 0 answers whoever stands there, until all have heard it.
    """
    name = secrets.token_hex(8)
    if index:
        store.set(f"hello/{index}", name)
        found = store.get(f"welcome/{name}").decode()
        store.set(f"here/{found}/{index}", "")
        return found
    missing, end = set(range(1, count)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"here/{name}/{other}"])}
        if time.monotonic() > end:
            raise ValueError(f"processes {sorted(missing)} of {count} did not come within {TIMEOUT}")
        time.sleep(0.01)
    return name


class Processes(Hosts):
    """One process a device. `store`: torchrun's. `seconds`: the watchdog's, None where it is off.

    `peers`: see `Peers`. `group_store`, `timeout`: for torch's process group.
    """

    called, agrees_at_once = "process", True

    def __init__(self, index, count, store, seconds):
        super().__init__(index, count, store)
        self.says = self.leads
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
        try:
            return self._store.add(f"said/{_OF_ANOTHER.sub('', text)}", 1) == 1
        except RuntimeError:  # process 0 serves the store where torchrun does not, and has left: it failed first
            return False

    def close(self):
        self.peers.stop()
        super().close()
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
        patience = seconds / 2 if seconds else math.inf
        self._interval = min(1.0, patience / 4)
        # Time is counted in beats of this process, so that one that sleeps with all others wakes up with them.
        self._now, self._patience = 0, patience / self._interval
        self._beats, self._heard = {}, dict.fromkeys(range(len(names)), 0)
        self._turn, self._since = 0, None
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def waiting(self):
        """Goes around what waits for all processes; they come to it equally often."""
        self._turn, self._since = self._turn + 1, self._now
        try:
            yield
        except RuntimeError:
            self._explain()
            raise
        finally:
            self._since = None

    def stop(self):
        """Before this process leaves with the others, which are not to miss it."""
        self._ended.set()
        self._thread.join()
        self._store.add(f"beat/{self._index}", _LEFT)

    def _watch(self):
        while not self._ended.wait(self._interval):
            try:
                self._listen()
                self._look(self._patience)
            except RuntimeError as error:
                self._leave(f"torchrun is gone, or cannot be reached: {str(error).splitlines()[0]}")

    def _listen(self):
        self._now += 1
        self._store.set(f"turn/{self._index}", str(self._turn))
        for index in range(len(self._names)):
            beats = self._store.add(f"beat/{index}", int(index == self._index))
            if beats != self._beats.get(index) or beats >= _LEFT:
                self._beats[index], self._heard[index] = beats, self._now

    def _look(self, patience):
        since = self._since
        for index, heard in self._heard.items():
            if self._now - heard > patience:
                self._leave(f"{self._name(index)} is gone or stopped: no sign of it {self._for(heard)}")
        if since is None or self._now - since <= self._patience:
            return
        for index, heard in self._heard.items():
            if self._now - heard < 3 and int(self._store.get(f"turn/{index}")) < self._turn:
                name = self._name(self._index)
                self._leave(f"{self._name(index)} hangs: {name} has waited for it {self._for(since)}")

    def _explain(self):
        """After an error of the group: leaves where one of the others turns out to be gone."""
        for _ in range(15):
            self._look(5)
            if self._ended.wait(self._interval):
                return

    def _for(self, since):
        return f"for {(self._now - since) * self._interval:.0f} s"

    def _name(self, index):
        return f"process {index} of {len(self._names)} ({self._names[index]})"

    def _leave(self, line):
        with self._lock:  # one line, whichever thread
            say(f"error: {line}; what was saved last is whole", sys.stderr)
            os._exit(1)  # the main thread may wait for ever
