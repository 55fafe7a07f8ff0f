"""Where a run computes: one processor or GPU (`Local`), or all chips of all hosts by PyTorch/XLA (`xla.Mesh`).

Both have the same attributes and methods, which is all that the mains know of a device.
"""

import contextlib
import glob
import os

import torch

from itit.eager import Eager
from itit.noise import Noise


class Local:
    """One processor or one GPU, in plain torch.

    Attributes: `device`; `run`, which runs the parts of a step, and `sampler`, which runs those of generation (see
    eager.py); `num_devices`, `num_hosts`, `host_index`; `leads`, whether this host writes what all hosts know.
    """

    num_devices = num_hosts = 1
    host_index, leads = 0, True

    def __init__(self, device):
        self.device = torch.device(device)
        self.run = self.sampler = Eager()

    def adopt(self, module):
        """Moves the weights of a module to the device, and returns it."""
        return module.to(self.device)

    def place_state(self, state):
        """Puts what belongs to the weights of a fresh `State` beside them."""

    def fill(self, tensor, value):
        """Sets a tensor of the state from one on the host, in place."""
        with torch.no_grad():
            tensor.copy_(value)

    def __str__(self):
        return str(self.device)

    def fetch(self, tensors):
        """Tensors of the state by name, whole and on the host."""
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def to_device(self, batch, whole=False):
        """This host's rows, name -> NumPy array, as tensors of the global batch on the devices, by the same names.

        Args:
          whole: every host gives the whole batch.
        """
        return {name: torch.from_numpy(value).to(self.device, non_blocking=True) for name, value in batch.items()}

    def noise(self, seed, step, part=0):
        """The draws of a part of a step, an index or a name (see noise.py)."""
        return Noise(seed, step, self.device, part)

    def check_rows(self, rows):
        """Raises ValueError where hosts feed the same rows. `rows`: task -> int64 [B], places in a stream."""

    def any_host(self, value):
        """Whether `value` is true on any host."""
        return value

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


def connect(config):
    """The backend of a TrainConfig. Raises ValueError, one line, where it is not there."""
    backend = config.backend
    if backend == "auto":
        backend = "xla" if _has_tpu() else "cuda" if torch.cuda.is_available() else "cpu"
    if backend == "xla":
        try:
            from itit import xla  # takes seconds, and not every machine has it
        except ImportError as error:
            raise ValueError(f"--backend=xla: torch_xla cannot be imported: {error}") from None
        return xla.connect(config)
    if backend == "cuda" and not torch.cuda.is_available():
        raise ValueError("--backend=cuda: this machine has no CUDA GPU that torch can use; choose cpu")
    return Local(backend)


def _has_tpu():
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return os.environ.get("PJRT_DEVICE", "TPU" if chips else "") == "TPU"
