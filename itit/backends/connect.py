"""Where a run computes: one processor or GPU (`local.Local`), or all chips of all hosts by PyTorch/XLA (`xla.mesh`).

Both have the same attributes and methods, which is all that the mains know of a device.
"""

import glob
import os

import torch

from itit.backends.local import Local


def connect(config):
    """The backend of a TrainConfig. Sets torch's precision of float32 products and convolutions, too.

    Raises ValueError, one line, where it is not there.
    """
    torch.set_float32_matmul_precision(config.matmul_precision)
    torch.backends.cudnn.allow_tf32 = config.matmul_precision != "highest"  # by default it is, whatever the line above
    backend = config.backend
    if backend == "auto":
        backend = "xla" if _has_tpu() else "cuda" if torch.cuda.is_available() else "cpu"
    if backend == "xla":
        try:
            from itit.xla import mesh  # takes seconds, and not every machine has it
        except ImportError as error:
            raise ValueError(f"--backend=xla: torch_xla cannot be imported: {error}") from None
        return mesh.connect(config)
    if backend == "cuda" and not torch.cuda.is_available():
        raise ValueError("--backend=cuda: this machine has no CUDA GPU that torch can use; choose cpu")
    return Local(backend, graphs=backend == "cuda" and config.cuda_graphs)


def _has_tpu():
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return os.environ.get("PJRT_DEVICE", "TPU" if chips else "") == "TPU"
