"""The processes of a run, one a host, and what they tell each other: small values, over TCP, past the devices.

Every host must call the same methods in the same order. One host alone needs no network.
"""

import copy
import datetime
import json

import numpy as np
import torch.distributed

TIMEOUT = datetime.timedelta(minutes=20)  # hosts may take that long for one checkpoint, or to compile


class Hosts:
    """All hosts, seen from one of them.

    Args:
      index, count: which of how many this is.
      address, port: where host 0 listens, as every host reaches it.
      timeout: longest wait for another host.

    `leads`: whether this host writes what all hosts know.
    """

    def __init__(self, index=0, count=1, address="", port=0, timeout=TIMEOUT):
        self.index, self.count, self.leads = index, count, index == 0
        self._server, self._turn, self._store = (address, port, timeout), 0, None
        if count > 1:
            self._store = torch.distributed.TCPStore(address, port, count, self.leads, timeout)

    def channel(self, name):
        """The same hosts once more, for another thread: on a connection of its own, where only that one speaks.

        All hosts make the same ones. Host 0 stays, by `close` of the hosts themselves, until all are done there, too.
        """
        other = copy.copy(self)
        other._turn = 0
        if self._store is not None:
            address, port, timeout = self._server
            # A connection answers one question after the other: on that of `self` a long wait would hold up the steps.
            own = torch.distributed.TCPStore(address, port, self.count, False, timeout, wait_for_workers=False)
            other._store = torch.distributed.PrefixStore(name, own)
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
            raise RuntimeError(f"host {self.index} of {self.count}: another host is gone or slow: "
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
                raise ValueError(f"host {host}: {message}")
        return [result for result, _ in found]

    def check_rows(self, rows):
        """Raises ValueError where hosts feed the same rows. `rows`: task -> int64 [B], places in a stream."""
        found = self.gather({task: places.tolist() for task, places in rows.items()})
        for task in rows:
            places = np.concatenate([host[task] for host in found])
            if len(np.unique(places)) < len(places):
                self.close()
                raise ValueError(f"--{task}_batch: several of the {self.count} hosts feed the same rows")

    def check_same(self, values):
        """Raises ValueError naming the first value that a host has otherwise than host 0. `values`: name -> str."""
        first, *others = self.gather(values)
        for host, found in enumerate(others, 1):
            for name in first | found:
                if first.get(name) != found.get(name):
                    self.close()
                    raise ValueError(f"{name}: host 0 has {first.get(name)}, host {host} has {found.get(name)}")

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
