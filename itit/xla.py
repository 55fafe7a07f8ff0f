"""PyTorch/XLA: the devices of all hosts as a mesh, what is split where on it, batches onto it (see also capture.py).

Import this before TensorFlow; the other way round LLVM aborts the process.
"""

import contextlib
import glob
import os
import sys

import numpy as np
import torch

from itit import sharding
from itit.noise import CounterNoise, counter_key

if "tensorflow" in sys.modules and "torch_xla" not in sys.modules:
    raise ValueError("TensorFlow was imported before torch_xla, which aborts the process: import itit.xla first")
if "PJRT_DEVICE" not in os.environ:
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        raise ValueError("PJRT_DEVICE is not set, and this machine has TPU chips: export PJRT_DEVICE=TPU")
    os.environ["PJRT_DEVICE"] = "CPU"

import torch_xla  # noqa: E402
import torch_xla.core.xla_model as xm  # noqa: E402
import torch_xla.debug.metrics as counters  # noqa: E402
import torch_xla.debug.profiler as profiler  # noqa: E402
import torch_xla.distributed.spmd as xs  # noqa: E402
import torch_xla.runtime as xr  # noqa: E402

from itit.capture import Captured, Lazy, num_compilations  # noqa: E402

_C = torch_xla._XLAC


# ---------------------------------------------------------------------------------------------- devices


def connect(config):
    """The Mesh of all devices of all hosts, for a TrainConfig; the first call to the runtime.

    Raises ValueError, one line: versions that do not belong together, a TPU in use by another process, a mesh that
    does not match the devices.
    """
    versions = [".".join(module.__version__.split(".")[:2]) for module in (torch, torch_xla)]
    if versions[0] != versions[1]:
        raise ValueError(f"torch {torch.__version__} and torch_xla {torch_xla.__version__}: must be of one version")
    if config.xla_cache and not _C._xla_computation_cache_is_initialized():
        folder = os.path.expanduser(config.xla_cache)
        os.makedirs(folder, exist_ok=True)
        xr.initialize_cache(folder)
    try:
        prepare(config.matmul_precision)
        num_devices = xr.global_runtime_device_count()
    except RuntimeError as error:
        if "libtpu" in str(error) or "in use" in str(error):
            raise ValueError("the TPU is in use by another process (sudo lsof -w /dev/accel* /dev/vfio/*): "
                             f"{str(error).splitlines()[0]}") from None  # fmt: skip
        raise
    mesh = Mesh(*sharding.mesh_shape(config.mesh_data, config.mesh_fsdp, num_devices))
    if config.xla_mode == "lazy":
        mesh.run = mesh.sampler = Lazy(mesh)
    return mesh


def prepare(matmul_precision):
    """Settings of the whole process."""
    xr.use_spmd()
    _C._set_xla_enable_device_data_cache(False)  # see capture.py
    _C._xla_set_mat_mul_precision({"highest": "highest", "high": "high", "medium": "default"}[matmul_precision])


class Mesh:
    """The devices as a grid of data x fsdp, and where tensors lie on it. A backend: see backend.py."""

    def __init__(self, data, fsdp):
        self.data, self.fsdp, self.num_devices = data, fsdp, data * fsdp
        self.device = torch_xla.device()
        self.num_hosts, self.host_index = xr.process_count(), xr.process_index()
        self.leads = self.host_index == 0
        self._mesh = xs.Mesh(np.arange(self.num_devices), (data, fsdp), (sharding.DATA, sharding.FSDP))
        self._shardings, self.texts = {}, {}  # spec -> as torch_xla has it, and as it writes it
        self.run, self.sampler = Captured(self), Captured(self, strict=False)

    def __str__(self):
        return f"{self.num_devices} x {xr.device_type()} (data {self.data}, fsdp {self.fsdp}), {self.num_hosts} hosts"

    # ------------------------------------------------------------------------------------------ where tensors lie

    def mark(self, tensor, spec):
        """Declares in place how a tensor is split: an axis, a tuple of axes or None for each dimension."""
        if spec not in self._shardings:
            self._shardings[spec] = self._mesh.get_op_sharding(spec)
        _C._xla_mark_sharding(tensor, self._shardings[spec])
        if spec not in self.texts:
            self.texts[spec] = _C._get_xla_sharding_spec(tensor)
        return tensor

    def place(self, tensor):
        """Puts the rows of a fresh tensor [rows, ...], or of a computed one, where the rows of the batch are."""
        return self.mark(tensor, sharding.batch_spec(tuple(tensor.shape), self.num_devices))

    def place_result(self, tensor):
        """The same for a result, unless it was given a place."""
        return tensor if _C._get_xla_sharding_spec(tensor) else self.place(tensor)

    def adopt(self, module):
        """Splits the weights of a module by the table of sharding.py, and holds what its blocks return by rows."""
        module.to(self.device)
        for name, p in module.named_parameters():
            self.mark(p.data, sharding.parameter_spec(name, tuple(p.shape), self.fsdp))
        self.hold_rows(module)
        torch_xla.sync(wait=True)
        return module

    def hold_rows(self, module):
        """What the blocks of a module return, and the gradient that comes back, stays split by rows."""

        def hook(part, inputs, output):
            if output.device.type != "xla" or output.shape[0] % self.num_devices:
                return output
            return _Placed.apply(output, self)

        for part in module.modules():
            if type(part).__name__ in ("Block", "TiedHead", "Embedding", "ResBlock"):
                part.register_forward_hook(hook)

    def place_state(self, state):
        """Splits moments and averages of a `train_step.State` as their weights are."""
        self._specs = {}
        shapes = {name: tuple(p.shape) for name, p in state.model.named_parameters()}
        for name, tensor in state.tensors().items():
            spec = sharding.state_spec(name.partition("/")[2], tuple(tensor.shape), self.fsdp, shapes)
            self._specs[id(tensor)] = spec
            self.mark(tensor.data, spec)
        for tensor in state.t5_of_nothing:
            self.place(tensor)
        torch_xla.sync(wait=True)

    def fill(self, tensor, value):
        """Sets a tensor of the state from one on the host."""
        tensor.data = self.mark(value.to(self.device, tensor.dtype), self._specs[id(tensor)])

    def fetch(self, tensors):
        """Tensors of the state by name, whole and on the host.

        From the pieces on this host's devices, where it has all: torch_xla's own copy compiles a program a tensor.
        """
        names, places = list(tensors), [tensor.detach() for tensor in tensors.values()]
        if self.num_hosts > 1:
            return {name: tensor.cpu() for name, tensor in zip(names, places, strict=True)}
        out = {}
        for name, tensor in zip(names, places, strict=True):
            if self.num_devices == 1 or "devices=" not in (_C._get_xla_sharding_spec(tensor) or ""):
                out[name] = tensor.cpu()
                continue
            out[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
            pieces = _C._get_local_shards([tensor])[0]
            where = _C._get_local_shard_replica_and_indices([tensor])[0]
            for (piece, _), (_, index) in zip(pieces, where, strict=True):
                out[name][tuple(index)] = piece[tuple(slice(0, s.stop - s.start) for s in index)]
        return out

    # ------------------------------------------------------------------------------------------ input

    def to_device(self, batch, whole=False):
        """This host's rows, name -> NumPy array, as rows of the global batch on the devices of all hosts.

        Args:
          whole: every host gives the whole batch.
        """
        out = {}
        for name, value in batch.items():
            shape = (len(value) * (1 if whole else self.num_hosts), *value.shape[1:])
            axes = sharding.batch_spec(shape, self.num_devices)
            spec = xs.ShardingSpec(self._mesh, axes, minibatch=self.num_hosts > 1 and not whole)
            out[name] = xm.send_cpu_data_to_device([torch.as_tensor(value)], self.device, spec)[0]
        return out

    def noise(self, seed, step, part=0):
        """The draws of a part of a step, an index or a name (see noise.py)."""
        key = self.mark(counter_key(seed, step, part).to(self.device), (None,))
        return CounterNoise(key, self.place)

    def check_rows(self, rows):
        """Raises ValueError where hosts feed the same rows. `rows`: task -> int64 [B], places in a stream."""
        for task, ids in self.to_device(rows).items():
            ids = ids.cpu().sort().values
            if bool((ids[1:] == ids[:-1]).any()):
                raise ValueError(f"--{task}_batch: several of the {self.num_hosts} hosts feed the same rows")

    def wait(self):
        """Returns when the devices have done all that was started."""
        xm.wait_device_ops()

    def any_host(self, value):
        """Whether `value` is true on any host."""
        if self.num_hosts == 1:
            return value
        rows = np.full((self.num_devices // self.num_hosts,), value, np.int64)
        return bool(self.to_device({"value": rows})["value"].cpu().any())

    # ------------------------------------------------------------------------------------------ what happened

    @contextlib.contextmanager
    def watch(self, folder=""):
        """Goes around a step. With a folder, records what runs, for TensorBoard's profiler.

        Raises RuntimeError where a program was compiled that no captured function asked for: it would be again.
        """
        before = self._num_strays()
        if folder:
            profiler.start_trace(folder)
        yield
        if folder:
            self.wait()
            profiler.stop_trace()
        found = self._num_strays() - before
        if found and isinstance(self.run, Captured):
            raise RuntimeError(f"{found} programs were compiled in a step beside its captured functions: something "
                               "between them computes on the device")  # fmt: skip

    def _num_strays(self):
        return num_compilations() - getattr(self.run, "num_compilations", 0)

    def measures(self):
        """Name -> number, for TensorBoard after the first step: its time is that of a warm start if all were cached."""
        found = counters.counter_value("PersistentCacheHit") or 0
        return {"programs/made": num_compilations(), "programs/from_cache": found}


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mesh):
        ctx.mesh = mesh
        return mesh.place(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return ctx.mesh.place(grad.clone()), None
