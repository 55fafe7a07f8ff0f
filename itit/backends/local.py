"""One processor or one GPU, in plain torch: `Local`."""

import contextlib

import torch

from itit.backends.compiled import compile_repeated
from itit.backends.cuda_graphs import Graphs
from itit.checkpoint.pieces import Piece, whole_index
from itit.hosts import Hosts
from itit.noise import Noise
from itit.program import Eager
from itit.train_step import Alone
from itit.training.interrupt import Stoppable


def on(device=None):
    """`Local` on a torch device, by default the GPU, if there is one, else the processor."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Local(device, graphs=device.type == "cuda")


class Local:
    """One processor or one GPU, in plain torch.

    Attributes: `device`; `run`, which runs the programs of a step, and `sampler`, which runs those of generation (see
    program.py); `num_devices`, of all hosts; `hosts`, which tell each other what is no tensor (see hosts.py);
    `splits_parts`, whether the rows of a host are a share of each microbatch, or one of the batch; `across`, of a
    `train_step.State`.

    Args:
      graphs: on a GPU, functions of many parts run as CUDA graphs (see cuda_graphs.py).
      compiles: whether adopted modules are compiled in parts (see compiled.py).
    """

    num_devices, splits_parts, across = 1, False, Alone()

    def __init__(self, device, graphs=False, compiles=False):
        self.device, self.hosts = torch.device(device), Hosts()
        self.run = self.sampler = Eager()
        self._graphs, self._compiles = Graphs() if graphs else None, compiles

    def whole(self, function, *args):
        """Calls a function of many parts, such as a step; its parts run as it says."""
        return self._graphs(function, *args) if self._graphs else function(*args)

    def spread(self, function, items):
        """What function(item) returns, a tensor or a tuple of tensors, for each item, in order, on every host. Hosts
        that have the items whole share them out."""
        return [function(item) for item in items]

    def stop_by(self, interrupt):
        """From now on a signal ends generation between two of its parts, by `interrupt.Interrupted`; a recorded one,
        which is short, goes on to its end."""
        if not self._graphs:
            self.sampler = Stoppable(self.sampler, interrupt)

    def adopt(self, module):
        """Moves the weights of a module to the device, and returns it."""
        if self._compiles:
            compile_repeated(module, self.device)
        return module.to(self.device)

    def place_state(self, state):
        """Puts what belongs to the weights of a fresh `State` beside them."""

    def pack(self, state):
        """Readies a filled state for many steps; after it nothing but programs changes it."""

    def owned(self, tensors):
        """What this host saves of tensors of the state: name -> list of `pieces.Piece`; some host has each once.

        Copies on the host, which later steps do not reach.
        """
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        return {name: [Piece(tuple(t.shape), whole_index(t.shape), t)] for name, t in copies.items()}

    def held(self, tensor):
        """The indices (see `pieces.Piece`) of a tensor of the state that lie on devices of this host."""
        return [whole_index(tensor.shape)]

    def fill(self, tensor, parts):
        """Sets a tensor of the state, in place. `parts`: each of `held` -> what belongs there, on the host."""
        with torch.no_grad():
            tensor.copy_(parts[whole_index(tensor.shape)])

    def on_host(self, tensors):
        """Tensors by name, whole, on the host; all hosts call it."""
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def __str__(self):
        return str(self.device)

    def to_device(self, batch, whole=False):
        """This host's rows, name -> NumPy array, as tensors of the global batch on the devices, by the same names.

        Args:
          whole: every host gives the whole batch.
        """
        tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
        if self.device.type == "cuda":  # out of other memory the copy makes the host wait for the step before
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    def noise(self, seed, step, part=0, rows=None, whole=False):
        """The draws of a part of a step, an index or a name.

        Args:
          rows: list of numbers, one a row (see noise.py).
          whole: every host has all rows that are drawn for.
        """
        return Noise(seed, step, self.device, part, rows)

    @contextlib.contextmanager
    def watch(self, folder=""):
        """Goes around a step. With a folder, records what runs, for TensorBoard's profiler."""
        if not folder:
            yield
            return
        with torch.profiler.profile(on_trace_ready=torch.profiler.tensorboard_trace_handler(folder)):
            yield

    def measures(self):
        """Name -> number, for TensorBoard after the first step: how the start went."""
        return {}
