"""Many processes, one a device, on torch.distributed: the run that `torchrun -m itit.train` starts.

Every process has the whole model and an equal share of the rows of each microbatch. What belongs to rows (tokens,
features, synthesis, losses) it computes for its own; draws are those of its rows in the global batch (see
`noise.Noise`). Three things go between processes: what counts in each loss, before the losses; gradients; losses, for
the curves (see exchange.py). From there on all compute the same update, so weights stay equal without being sent.
A checkpoint is one file a process, as it is one a host on a pod, each with some of the tensors: it goes on anywhere.
"""

import torch
import torch.distributed as dist

from itit.backends.exchange import Exchange
from itit.backends.local import Local
from itit.backends.split import of_node, split
from itit.noise import Noise


def connect(device, processes, *options):
    """The backend of one of torchrun's `processes.Processes`; `options`: of `Distributed`."""
    kinds = {"cpu": "gloo", device.type: dist.get_default_backend_for_device(device)}
    dist.init_process_group(
        ",".join(f"{name}:{backend}" for name, backend in kinds.items()), store=processes.group_store,
        rank=processes.index, world_size=processes.count, timeout=processes.timeout,
    )  # fmt: skip
    return Distributed(device, processes, *options)


class Distributed(Local):
    """One of several processes. A backend: see connect.py."""

    splits_parts = True

    def __init__(self, device, processes, shard_state=False, split_frozen=False, graphs=False,
                 compiles=False):  # fmt: skip
        super().__init__(device, graphs, compiles)
        self.hosts, self.num_devices = processes, processes.count
        self.across = Exchange(processes.index, processes.count, processes.peers, shard_state)
        self._splits_frozen = split_frozen
        self._owners = {}  # parameter -> the process that saves, and perhaps alone has, what belongs to it

    def adopt(self, module):
        if self._splits_frozen and not any(p.requires_grad for p in module.parameters()):
            split(module, *of_node(self.hosts.count), self.hosts.peers.waiting)
        return super().adopt(module)

    def spread(self, function, items):
        """Process p makes every item whose number leaves the rest p, and sends the others what they have not made.
        Frozen blocks in parts need all processes for every item: then each makes all."""
        if self._splits_frozen:
            return super().spread(function, items)
        index, count = self.hosts.index, self.hosts.count
        own = [function(item) if number % count == index else None for number, item in enumerate(items)]
        kinds = self.hosts.gather([made if made is None else _kind(made) for made in own])
        found = []
        for number, made in enumerate(own):
            owner = number % count
            made = _empty(kinds[owner][number], self.device) if made is None else made
            for tensor in made if isinstance(made, tuple) else (made,):
                with self.hosts.peers.waiting():
                    dist.broadcast(tensor.contiguous(), owner)
            found.append(made)
        return found

    def stop_by(self, interrupt):
        """Nothing: all processes run all parts of what they have begun."""

    def __str__(self):
        return f"{self.num_devices} x {self.device.type}, {dist.get_backend_config()}"

    def place_state(self, state):
        """Gives every parameter to a process: to save it, or to keep alone what the optimizer has of it, too."""
        exchange, parameters = self.across, dict(state.model.named_parameters())
        self._owners = exchange.own(state.model)
        mine = [name for name, owner in self._owners.items() if owner == self.hosts.index]
        if not exchange.splits:
            return
        if not mine:
            raise ValueError(f"--shard_state: more processes, {self.hosts.count}, than tensors to share out")
        state.optimizer.keep(mine, lambda part: exchange.sum({"": part})[""])
        if state.ema is not None:
            names = {p: name for name, p in parameters.items()}

            def whole(average):
                found = exchange.all_of({parameters[name]: tensor for name, tensor in average.items()})
                return {names[p]: tensor for p, tensor in found.items()}

            state.ema.keep(mine, whole)

    def owned(self, tensors):
        mine = {name: t for name, t in tensors.items() if self._owner(name) == self.hosts.index}
        return {name: [] for name in tensors} | super().owned(mine)

    def _owner(self, name):
        """Of a tensor of the state by its name there; process 0 has what belongs to no parameter."""
        return self._owners.get(name.rpartition("/")[2], 0)

    def noise(self, seed, step, part=0, rows=None, whole=False):
        share = (0, 1) if whole or rows is not None else (self.hosts.index, self.hosts.count)
        return Noise(seed, step, self.device, part, rows, share, fused=self.device.type != "cpu")


def _kind(made):
    """Shape and dtype of a tensor, or of each of a tuple, as JSON values."""
    if isinstance(made, tuple):
        return {"tuple": [_kind(tensor) for tensor in made]}
    return {"shape": list(made.shape), "dtype": str(made.dtype).removeprefix("torch.")}


def _empty(kind, device):
    """Without values, what was of this kind."""
    if "tuple" in kind:
        return tuple(_empty(each, device) for each in kind["tuple"])
    return torch.empty(kind["shape"], dtype=getattr(torch, kind["dtype"]), device=device)
