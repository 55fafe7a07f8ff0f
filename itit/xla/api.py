"""All that is asked of PyTorch/XLA, named by what it does; the one file that knows the library, and its private calls.

A tensor is pending while it has been traced and not computed. A graph is what computes some pending tensors, its
`roots`; a buffer is what lies on the devices, and its handle is its number.

Import this before TensorFlow; the other way round LLVM aborts the process.
"""

import glob
import math
import os
import sys

import numpy as np
import torch

if "tensorflow" in sys.modules and "torch_xla" not in sys.modules:
    raise ValueError("TensorFlow was imported before torch_xla, which aborts the process: import itit.xla.api first")
if "PJRT_DEVICE" not in os.environ:
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        raise ValueError("PJRT_DEVICE is not set, and this machine has TPU chips: export PJRT_DEVICE=TPU")
    os.environ["PJRT_DEVICE"] = "CPU"

import torch_xla  # noqa: E402
import torch_xla.core.xla_builder as xb  # noqa: E402
import torch_xla.core.xla_model as xm  # noqa: E402
import torch_xla.debug.metrics as counters  # noqa: E402
import torch_xla.debug.profiler as profiler  # noqa: E402
import torch_xla.distributed.spmd as xs  # noqa: E402
import torch_xla.runtime as xr  # noqa: E402
from torch_xla.utils.buffer_donor_context import alias_with_buffer_donor_config  # noqa: E402

_C = torch_xla._XLAC


# ---------------------------------------------------------------------------------------------- the process


def check_versions():
    """Raises ValueError where torch and torch_xla do not belong together."""
    versions = [".".join(module.__version__.split(".")[:2]) for module in (torch, torch_xla)]
    if versions[0] != versions[1]:
        raise ValueError(f"torch {torch.__version__} and torch_xla {torch_xla.__version__}: must be of one version")


def initialize_cache(folder):
    """Compiled programs are kept in this folder, which is made; the first call in a process counts."""
    if not _C._xla_computation_cache_is_initialized():
        folder = os.path.expanduser(folder)
        os.makedirs(folder, exist_ok=True)
        xr.initialize_cache(folder)


def use_spmd():
    """From here on one program runs on all devices, each on its part of the tensors."""
    xr.use_spmd()


def set_matmul_precision(precision):
    """Of products of float32, by torch's names: "highest", "high" or "medium"."""
    _C._xla_set_mat_mul_precision({"highest": "highest", "high": "high", "medium": "default"}[precision])


def set_device_data_cache(enabled):
    """Whether equal numbers that are made while tracing share one buffer."""
    _C._set_xla_enable_device_data_cache(enabled)


# ---------------------------------------------------------------------------------------------- devices and hosts


def device():
    """The torch.device of all devices together."""
    return torch_xla.device()


def device_count():
    """Devices of all hosts."""
    return xr.global_runtime_device_count()


def device_type():
    """Such as "TPU" or "CPU"."""
    return xr.device_type()


def process_index():
    """Which host this is."""
    return xr.process_index()


def process_count():
    """Hosts of the run."""
    return xr.process_count()


def master_ip():
    """Address of host 0 of a pod."""
    return xr.get_master_ip()


# ---------------------------------------------------------------------------------------------- where tensors lie


def device_mesh(shape, axis_names):
    """All devices, in the order of their numbers, as a grid with named axes."""
    return xs.Mesh(np.arange(math.prod(shape)), shape, axis_names)


def op_sharding(mesh, spec):
    """A sharding, to mark tensors with. `spec`: for each dimension an axis of the mesh, a tuple of axes or None."""
    return mesh.get_op_sharding(spec)


def mark_sharding(tensor, sharding):
    """Declares in place how a tensor is split."""
    _C._xla_mark_sharding(tensor, sharding)


def sharding_of(tensor):
    """What a tensor is marked with, or None."""
    return _C._get_xla_op_sharding(tensor)


def sharding_text(tensor):
    """The same as XLA writes it, such as "{devices=[8,1]0,1,2,3,4,5,6,7}"; empty where there is none."""
    return _C._get_xla_sharding_spec(tensor)


def sharding_texts(tensors):
    """The text of each."""
    return _C._get_xla_sharding_specs(tensors) if tensors else []


def to_devices(value, device, mesh, spec, minibatch):
    """A tensor of the host, on the devices of a mesh. `minibatch`: it is this host's rows alone, not all."""
    return xm.send_cpu_data_to_device([value], device, xs.ShardingSpec(mesh, spec, minibatch=minibatch))[0]


def local_places(tensor):
    """(number of the copy, index) of the piece on each device of this host; index: (start, stop) of each dimension."""
    found = _C._get_local_shard_replica_and_indices([tensor])[0]
    return [(copy, tuple((s.start, s.stop) for s in index)) for copy, index in found]


def local_shards(tensor):
    """Copies on the host of those pieces, in the same order."""
    return [value for value, _ in _C._get_local_shards([tensor])[0]]


def load_local_shards(tensor, values):
    """Sets those pieces, in place, from tensors on the host."""
    _C._load_local_shards(tensor, values, _C._xla_get_runtime_devices())


# ---------------------------------------------------------------------------------------------- tensors and graphs


def are_pending(tensors):
    """Of each, whether it is pending."""
    return _C._check_tensor_need_materialization(tensors) if tensors else []


def handles(tensors):
    """The handle of each one's buffer; that of a freed one may be given anew. RuntimeError: donated, and gone."""
    return _C._get_tensors_handle(tensors)


def handle(tensor):
    """The handle of one tensor's buffer."""
    return _C._get_tensors_handle([tensor])[0]


def value_id(tensor):
    """Names the node of a graph or the buffer that it stands for: equal where two tensors are one value."""
    return _C._unique_id_for_ir_and_data(tensor)


def graph_inputs(roots):
    """The buffers that the graph reads, numbers inside it among them, as tensors in the order of its parameters."""
    return _C._get_tensors_xla_device_data_node(roots)[1]


def base_seed(device):
    """The state of torch's own generator, as a tensor: a graph that reads it draws from there."""
    return _C._get_base_seed_as_tensor(str(device))


def placeholder(shape, dtype):
    """A tensor without a buffer: what is computed from it can be traced and not run."""
    return xb.create_placeholder_tensor(tuple(shape), dtype)


def barrier(tensor):
    """Marks it, in place, as computed before anything that reads it: the compiler merges nothing across."""
    _C._xla_optimization_barrier_([tensor])


def hlo_proto(roots):
    """The graph as a serialized HloModuleProto, not optimized."""
    return _C._get_xla_tensors_hlo_proto(roots)


def donate(tensor):
    """A graph that reads this buffer takes its memory for a result."""
    _C._set_buffer_donation(tensor, True)


def compile_graph(roots):
    """Compiles the graph as its buffers are donated, and returns its hash."""
    with alias_with_buffer_donor_config(True):
        graph_hash = _C._get_graph_hash(roots)
        _C._xla_warm_up_cache(roots, [])
    return graph_hash


def run_graph(graph_hash, inputs):
    """Starts the compiled graph on these tensors, one for each of `graph_inputs`; returns its roots as new tensors."""
    return _C._run_cached_graph(graph_hash, inputs)


def sync(wait=False):
    """Compiles and starts what is pending; `wait`: returns when it is done."""
    torch_xla.sync(wait=wait)


def wait():
    """Returns when the devices of this host have done all that was started."""
    xm.wait_device_ops()


# ---------------------------------------------------------------------------------------------- what happened


def num_compilations():
    """Programs made so far in this process."""
    data = counters.metric_data("CompileTime")
    return data[0] if data else 0


def num_cache_hits():
    """Programs that were read from the folder of `initialize_cache`."""
    return counters.counter_value("PersistentCacheHit") or 0


def fallbacks():
    """Operation -> times that it ran on the host since XLA has it not."""
    return {name: counters.counter_value(name) for name in counters.executed_fallback_ops()}


def start_trace(folder):
    """Records what runs, for TensorBoard's profiler, until `stop_trace`."""
    profiler.start_trace(folder)


def stop_trace():
    """Writes what was recorded."""
    profiler.stop_trace()


def push_scope(name):
    """Operations traced on this thread carry the name while what is returned lives."""
    return _C.profiler.scope_pusher(name)
