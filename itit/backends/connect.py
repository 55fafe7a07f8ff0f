"""Where a run computes: one processor or GPU (`local.Local`), many of them, each with a process
(`distributed.Distributed`), or all chips of all hosts by PyTorch/XLA (`xla.mesh`).

All have the same attributes and methods, which is all that the mains know of a device.
"""

import glob
import os

import torch
from absl import logging

from itit.backends import compiled, distributed
from itit.backends.local import Local
from itit.backends.processes import num_started, own_device

TRIED = ("cpu", "cuda")  # kinds of devices of torch's that ITIT has run on


def connect(config, processes=None, each=False):
    """The backend of a TrainConfig. Sets torch's precision of float32 products and convolutions, too.

    Args:
      processes: those of torchrun that are one run (see `processes.launched`).
      each: where torchrun has started several, each is alone on its device; they share the work out by themselves.

    Raises ValueError, one line, where it is not there, or this was started by torchrun and does not share its work.
    """
    torch.set_float32_matmul_precision(config.matmul_precision)
    torch.backends.cudnn.allow_tf32 = config.matmul_precision != "highest"  # by default it is, whatever the line above
    if processes is None and not each and num_started() > 1:
        raise ValueError(f"WORLD_SIZE={num_started()}: this command is one process; start it without torchrun")
    there = torch.accelerator.current_accelerator(check_available=True)
    there = there.type if there else "cpu"
    backend = config.backend
    if backend == "auto":
        backend = "xla" if _has_tpu() else there if there in TRIED else "cpu"
    if backend == "xla":
        if num_started() > 1:
            raise ValueError(f"--backend=xla with WORLD_SIZE={num_started()}: one process drives all chips of a host; "
                             "start it without torchrun")  # fmt: skip
        try:
            from itit.xla import mesh  # takes seconds, and not every machine has it
        except ImportError as error:
            raise ValueError(f"--backend=xla: torch_xla cannot be imported: {error}") from None
        return mesh.connect(config)
    if backend not in ("cpu", there):
        known = " or ".join(dict.fromkeys(("cpu", there)))
        raise ValueError(f"--backend={backend}: this machine has no such device that torch can use; choose {known}")
    if backend not in TRIED:
        logging.warning("--backend=%s: ITIT has never run on one; compare its first losses with --backend=cpu", backend)
    device, graphs = own_device(backend), backend == "cuda" and config.cuda_graphs and not config.recompute_blocks
    if config.compile and processes is not None and backend == "cpu":
        raise ValueError("--compile: not with several processes on processors, where dropout draws for all rows; leave "
                         "one of the two out")  # fmt: skip
    if config.compile:
        compiled.check(device)
    if processes is None:
        return Local(device, graphs, config.compile)
    return distributed.connect(device, processes, config.shard_state, config.shard_text_encoder, graphs, config.compile)


def _has_tpu():
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return os.environ.get("PJRT_DEVICE", "TPU" if chips else "") == "TPU"
