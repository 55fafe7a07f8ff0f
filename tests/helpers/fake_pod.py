"""A backend for tests of several hosts in real processes: what a pod's hosts share, without a pod.

torch_xla's runtime for processors knows one process. Here each host is a process that computes the whole step in plain
torch; all else is as on a pod: it feeds its own rows alone, and the global batch is put together from all hosts'; its
devices hold pieces of the state by the table of xla/sharding.py, and it saves and reads those alone.
"""

import numpy as np
import torch

from itit.backends.local import Local
from itit.checkpoint.pieces import Piece, slices, whole_index
from itit.xla import sharding


class Host(Local):
    """One of `hosts.count` hosts; `num_devices` in all, equally many on each, all in one row: mesh (1, num_devices)."""

    def __init__(self, hosts, num_devices):
        super().__init__("cpu")
        self.hosts, self.num_devices, self.num_read = hosts, num_devices, 0

    def to_device(self, batch, whole=False):
        if not whole:
            found = self.hosts.gather({name: [value.tolist(), str(value.dtype)] for name, value in batch.items()})
            batch = {name: np.concatenate([np.array(host[name][0], host[name][1]) for host in found]) for name in batch}
        return super().to_device(batch)

    def place_state(self, state):
        shapes = {name: tuple(p.shape) for name, p in state.model.named_parameters()}
        self.specs = {
            id(tensor): sharding.state_spec(name, tuple(tensor.shape), 1, self.num_devices, shapes)
            for name, tensor in state.tensors().items()
        }

    def held(self, tensor):
        spec, shape = self.specs[id(tensor)], tuple(tensor.shape)
        if not any(spec):
            return [whole_index(shape)]
        (dim,) = (dim for dim, axes in enumerate(spec) if axes)
        a_host = self.num_devices // self.hosts.count
        size = shape[dim] // self.num_devices
        places = range(self.hosts.index * a_host, (self.hosts.index + 1) * a_host)
        whole = whole_index(shape)
        return [(*whole[:dim], (i * size, (i + 1) * size), *whole[dim + 1 :]) for i in places]

    def owned(self, tensors):
        return {
            name: [Piece(tuple(t.shape), index, t.detach()[slices(index)].clone()) for index in self.held(t)]
            if any(self.specs[id(t)]) or self.hosts.leads
            else []
            for name, t in tensors.items()
        }

    def fill(self, tensor, parts):
        """This host's parts as they were read; those of the others from them, since each host computes the whole."""
        mine = [[list(map(list, index)), value.double().flatten().tolist()] for index, value in parts.items()]
        self.num_read += sum(value.numel() for value in parts.values())
        with torch.no_grad():
            tensor.fill_(torch.nan if tensor.is_floating_point() else -1)
            for host in self.hosts.gather(mine):
                for index, numbers in host:
                    shape = [stop - start for start, stop in index]
                    tensor[slices(index)] = torch.tensor(numbers, dtype=torch.float64).to(tensor.dtype).reshape(shape)
