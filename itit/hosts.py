"""The processes of a run, and what they tell each other: small values, over TCP, past the devices.

On a pod there is one a host, by which they go here; under torchrun one a device. Every host must call the same methods
in the same order. One host alone needs no network.
"""

import copy
import datetime
import json

import numpy as np
import torch.distributed

TIMEOUT = datetime.timedelta(minutes=20)  # hosts may take that long for one checkpoint, or to compile


def over_tcp(index, count, address, port, timeout=TIMEOUT):
    """The Hosts of which host 0 listens at this address and port, as every host reaches it."""
    return Hosts(index, count, torch.distributed.TCPStore(address, port, count, index == 0, timeout))


class Hosts:
    """All hosts, seen from one of them.

    Args:
      index, count: which of how many this is.
      store: torch's store of keys and values that all hosts reach (see `over_tcp`); None of one host alone. Its timeout
        is the longest wait for another host.

    `leads`: whether this host writes what all hosts know. `says`: whether it says what all would say: each host has a
    screen of its own. `called`: what people call one of them. `agrees_at_once`: whether `any` takes no time to speak
    of.
    """

    called, agrees_at_once = "host", False

    def __init__(self, index=0, count=1, store=None):
        self.index, self.count, self.leads, self.says = index, count, index == 0, True
        self._store, self._turn = store, 0

    def channel(self, name):
        """The same hosts once more, for another thread: on a connection of its own, where only that one speaks.

        All hosts make the same ones. Host 0 stays, by `close` of the hosts themselves, until all are done there, too.
        """
        other = copy.copy(self)
        other._turn = 0
        if self._store is not None:
            # A connection answers one question after the other: on that of `self` a long wait would hold up the steps.
            other._store = torch.distributed.PrefixStore(name, self._store.clone())
        return other

    def gather(self, value):
        """The JSON value of each host, in order, on every host. RuntimeError where one does not come in time."""
        if self._store is None:
            return [value]
        self._turn += 1
        try:
            self._store.set(self._key(self._turn, self.index), json.dumps(value))
            found = [json.loads(self._store.get(self._key(self._turn, host))) for host in range(self.count)]
            # Who is here has read all of the turn before.
            self._store.delete_key(self._key(self._turn - 1, self.index))
        except RuntimeError as error:  # torch names the key and not the host
            raise RuntimeError(f"{self.called} {self.index} of {self.count}: another {self.called} is gone or slow: "
                               f"{str(error).splitlines()[0]}") from None  # fmt: skip
        return found

    def any(self, value):
        """Whether `value` is true on any host."""
        return any(self.gather(bool(value)))

    def together(self, work):
        """What `work()` returns, a JSON value, on each host.

        Where it fails on one it fails on all: there with its own error, on the others with a ValueError that names the
        host.
        """
        result = error = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        found = self.gather([result, error and (str(error) or repr(error))])
        if any(message is not None for _, message in found):
            self.close()
        if error is not None:
            raise error
        for host, (_, message) in enumerate(found):
            if message is not None:
                raise ValueError(f"{self.called} {host}: {message}")
        return [result for result, _ in found]

    def check_rows(self, rows):
        """Raises ValueError where hosts feed the same rows. `rows`: task -> int64 [B], places in a stream."""
        found = self.gather({task: places.tolist() for task, places in rows.items()})
        for task in rows:
            places = np.concatenate([host[task] for host in found])
            if len(np.unique(places)) < len(places):
                self.close()
                raise ValueError(f"--{task}_batch: several of the {self.count} {self.called}s feed the same rows")

    def check_same(self, values):
        """Raises ValueError naming the first value that a host has otherwise than host 0. `values`: name -> str."""
        first, *others = self.gather(values)
        for host, found in enumerate(others, 1):
            for name in first | found:
                if first.get(name) != found.get(name):
                    self.close()
                    raise ValueError(f"{name}: {self.called} 0 has {first.get(name)}, {self.called} {host} has "
                                     f"{found.get(name)}")  # fmt: skip

    def close(self):
        """Before hosts leave: host 0, whom the others ask, stays until they have their answers."""
        if self._store is None:
            return
        self._store.set(f"closed/{self._turn}/{self.index}", "")
        if self.leads:
            self._store.wait([f"closed/{self._turn}/{host}" for host in range(self.count)])

    @staticmethod
    def _key(turn, host):
        return f"{turn}/{host}"
