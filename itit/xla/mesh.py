"""PyTorch/XLA as a backend: the devices of all hosts as a mesh, what is split where on it, batches onto it."""

import contextlib

import numpy as np
import torch

from itit.checkpoint.pieces import Piece, slices, whole_index
from itit.hosts import Hosts, over_tcp
from itit.models import weights_to_cast
from itit.train_step import Alone
from itit.xla import api, sharding
from itit.xla.buffers import Packs, lay
from itit.xla.capture import Captured, Lazy
from itit.xla.noise import CounterNoise, counter_key

PORT = 12355  # where host 0 of a pod listens to the others; the runtime's own are 8470 to 8482


# ---------------------------------------------------------------------------------------------- devices


def connect(config):
    """The Mesh of all devices of all hosts, for a TrainConfig; the first call to the runtime.

    Raises ValueError, one line: versions that do not belong together, a TPU in use by another process, a mesh that
    does not match the devices.
    """
    api.check_versions()
    if config.compile:
        raise ValueError("--compile: not on XLA, which compiles whole programs itself")
    if config.recompute_blocks:
        raise ValueError("--recompute_blocks: not on XLA, which would merge both computations; add devices instead")
    if config.xla_cache:
        api.initialize_cache(config.xla_cache)
    try:
        prepare(config.matmul_precision)
        num_devices = api.device_count()
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
    api.use_spmd()
    api.set_device_data_cache(False)  # see `traced` in capture.py
    api.set_matmul_precision(matmul_precision)


class Mesh:
    """The devices as a grid of data x fsdp, and where tensors lie on it. A backend: see backends/connect.py."""

    splits_parts, across = False, Alone()

    def __init__(self, data, fsdp):
        self.data, self.fsdp, self.num_devices = data, fsdp, data * fsdp
        self.device = api.device()
        count = api.process_count()
        self.hosts = over_tcp(api.process_index(), count, api.master_ip(), PORT) if count > 1 else Hosts()
        axes = sharding.axes(data, fsdp)
        self._mesh = api.device_mesh(tuple(axes.values()), tuple(axes))
        self._shardings, self.texts = {}, {}  # spec -> as XLA has it, and as it writes it
        self.packs = Packs()
        self.run, self.sampler = Captured(self), Captured(self, strict=False)

    def spread(self, function, items):
        """What function(item) returns for each item: here of all devices together."""
        return [function(item) for item in items]

    def stop_by(self, interrupt):
        """Nothing: all hosts run all parts of what they have begun."""

    def __str__(self):
        grid = f"data {self.data}, fsdp {self.fsdp}"
        return f"{self.num_devices} x {api.device_type()} ({grid}), {self.hosts.count} hosts"

    # ------------------------------------------------------------------------------------------ where tensors lie

    def mark(self, tensor, spec):
        """Declares in place how a tensor is split: an axis, a tuple of axes or None for each dimension."""
        if spec not in self._shardings:
            self._shardings[spec] = api.op_sharding(self._mesh, spec)
        api.mark_sharding(tensor, self._shardings[spec])
        if spec not in self.texts:
            self.texts[spec] = api.sharding_text(tensor)
        return tensor

    def place(self, tensor):
        """Puts the rows of a fresh tensor [rows, ...], or of a computed one, where the rows of the batch are."""
        return self.mark(tensor, sharding.batch_spec(tuple(tensor.shape), self.num_devices))

    def place_result(self, tensor):
        """The same for a result, unless it was given a place."""
        return tensor if api.sharding_text(tensor) else self.place(tensor)

    def adopt(self, module):
        """Splits the weights of a module by the table of sharding.py, and holds what its blocks return by rows."""
        module.to(self.device)
        for name, p in module.named_parameters():
            self.mark(p.data, sharding.parameter_spec(name, tuple(p.shape), self.fsdp))
        self.hold_rows(module)
        api.sync(wait=True)
        return module

    def hold_rows(self, module):
        """What the blocks of a module return, and the gradient that comes back, stays split by rows.

        An image tokenizer gets 8 pictures a device: for 4 or 6 the TPU compiler needs more than twice the time.
        """
        if hasattr(module, "row_multiple"):
            module.row_multiple = 8 * self.num_devices

        def hook(part, inputs, output):
            if output.device.type != "xla" or output.shape[0] % self.num_devices:
                return output
            return _Placed.apply(output, self)

        for part in module.modules():
            if getattr(part, "returns_rows", False) or isinstance(part, torch.nn.Embedding):
                part.register_forward_hook(hook)

    def place_state(self, state):
        """Splits the tensors of a `train_step.State`, or of what is like one, by the table of sharding.py."""
        self._specs = {}
        for tensor, spec in self.state_specs(state):
            self._specs[id(tensor)] = spec
            tensor.data = tensor.data * 1  # it has a place already, or is a copy of what has
            self.mark(tensor.data, spec)
        for tensor in state.placed_rows():
            self.place(tensor)
        api.sync(wait=True)

    def pack(self, state):
        """Few tensors on the devices in the place of a state's many (see buffers.py), once it is filled."""
        names, specs = state.tensors(), self.state_specs(state)
        self._pack([(name.rpartition("/")[0], *one) for name, one in zip(names, specs, strict=True)], self._joined)
        self._compute()

    def empty(self, weights):
        """Tensors without values that lie as weights do, name -> tensor. `weights`: name -> (weight, its new dtype).

        Few lie in the place of many, but not of matrices: a TPU copies a matrix out of a buffer before it multiplies by
        it, and decoding would take a fifth longer.
        """
        specs = {name: sharding.parameter_spec(name, tuple(w.shape), self.fsdp) for name, (w, _) in weights.items()}
        tensors = {name: self._fresh(tuple(w.shape), dtype, specs[name]) for name, (w, dtype) in weights.items()}
        self._pack([(None, tensor, specs[name]) for name, tensor in tensors.items() if tensor.ndim == 1],
                   lambda tensors, shape, spec: self._fresh(shape, tensors[0].dtype, spec))  # fmt: skip
        self._compute()
        return tensors

    def _pack(self, entries, buffer):
        """entries: (kind, tensor, spec). Those that are alike become the rows of a `buffer(tensors, shape, spec)`."""
        groups = {}
        for kind, tensor, spec in entries:
            groups.setdefault((kind, tuple(tensor.shape), tensor.dtype, spec), []).append(tensor)
        for (_, shape, _, spec), tensors in groups.items():
            if len(tensors) > 2 and shape:
                self.packs.add(buffer(tensors, *lay(tensors, spec)), tensors)

    def _joined(self, tensors, shape, spec):
        return self.mark(torch.stack([t.detach() for t in tensors]).view(shape), spec)

    def _fresh(self, shape, dtype, spec):
        return self.mark(torch.zeros(shape, dtype=dtype, device=self.device), spec)

    def _compute(self):
        api.sync(wait=True)

    def state_specs(self, state):
        """(tensor, spec) of each tensor of a state."""
        shapes = {name: tuple(p.shape) for name, p in state.model.named_parameters()}
        cast = weights_to_cast(state.model)
        return [(tensor, sharding.state_spec(name, tuple(tensor.shape), self.data, self.fsdp, shapes, cast))
                for name, tensor in state.tensors().items()]  # fmt: skip

    def owned(self, tensors):
        """What this host saves of tensors of the state: name -> list of `pieces.Piece`; some host has each once.

        Those on its devices of which it has the first copy; copies on the host, which later steps do not reach. Pieces,
        since torch_xla's own copy of a whole tensor compiles a program and gathers.
        """
        return {
            name: pieces if row is None else [piece.of_row(row, tuple(tensors[name].shape)) for piece in pieces]
            for name, (pieces, row) in self._each(tensors, self._owned).items()
        }

    def _each(self, tensors, function):
        """Name -> (what the function returns of a tensor, None), or, of packed ones, (of their buffer, the row)."""
        buffers, found = {}, {}
        for name, tensor in tensors.items():
            buffer, row = self.packs.find(tensor) or (tensor.detach(), None)
            if id(buffer) not in buffers:
                buffers[id(buffer)] = buffer, function(buffer)
            found[name] = buffers[id(buffer)][1], row
        return found

    def _owned(self, tensor):
        shape = tuple(tensor.shape)
        if not self._is_split(tensor):
            return [Piece(shape, whole_index(shape), tensor.cpu())] if self.hosts.leads else []
        mine = [(i, index) for i, (copy, index) in enumerate(api.local_places(tensor)) if copy == 0]
        values = api.local_shards(tensor) if mine else []
        return [Piece(shape, index, values[i]) for i, index in mine]

    def held(self, tensor):
        """The indices (see `pieces.Piece`) of a tensor of the state that lie on devices of this host."""
        if not self._is_split(tensor):
            return [whole_index(tensor.shape)]
        return list(dict.fromkeys(index for _, index in api.local_places(tensor.detach())))

    def fill(self, tensor, parts):
        """Sets a tensor of the state, in place. `parts`: each of `held` -> what belongs there, on the host."""
        assert not self.packs.find(tensor), "a state is filled before it is packed"
        if not self._is_split(tensor):
            (value,) = parts.values()
            tensor.data = self.mark(value.to(self.device, tensor.dtype), self._specs[id(tensor)])
            return
        values = [parts[index].to(tensor.dtype) for _, index in api.local_places(tensor.detach())]
        api.load_local_shards(tensor.data, values)

    def on_host(self, tensors):
        """Tensors by name, whole, on the host; all hosts call it."""
        self.wait()  # the pieces of what is still being computed cannot be had
        found = self._each(tensors, self._on_host)
        return {
            name: value if row is None else value[row].view(tensors[name].shape) for name, (value, row) in found.items()
        }

    def _on_host(self, tensor):
        if self.hosts.count > 1 or not self._is_split(tensor):
            return tensor.cpu()
        out = torch.empty(tensor.shape, dtype=tensor.dtype)
        for piece in self._owned(tensor):
            out[slices(piece.index)] = piece.value[slices(piece.index, piece.index)]
        return out

    def _is_split(self, tensor):
        return self.num_devices > 1 and "devices=" in api.sharding_text(tensor)

    # ------------------------------------------------------------------------------------------ input

    def to_device(self, batch, whole=False):
        """This host's rows, name -> NumPy array, as rows of the global batch on the devices of all hosts.

        Args:
          whole: every host gives the whole batch.
        """
        out = {}
        for name, value in batch.items():
            shape = (len(value) * (1 if whole else self.hosts.count), *value.shape[1:])
            spec = sharding.batch_spec(shape, self.num_devices)
            minibatch = not whole and spec[0] is not None
            out[name] = api.to_devices(torch.as_tensor(value), self.device, self._mesh, spec, minibatch)
        return out

    def noise(self, seed, step, part=0, rows=None, whole=False):
        """The draws of a part of a step, an index or a name; `rows`: list of numbers, one a row (see noise.py)."""
        key = self.mark(counter_key(seed, step, part).to(self.device), (None,))
        if rows is not None:
            rows = self.to_device({"rows": np.array(rows, np.int32)}, whole=True)["rows"]
        return CounterNoise(key, self.place, rows=rows)

    def whole(self, function, *args):
        """Calls a function of many parts, such as a step; its parts run as it says, here each a program of its own."""
        return function(*args)

    def wait(self):
        """Returns when the devices have done all that was started."""
        api.wait()

    # ------------------------------------------------------------------------------------------ what happened

    @contextlib.contextmanager
    def watch(self, folder=""):
        """Goes around a step. With a folder, records what runs, for TensorBoard's profiler.

        Raises RuntimeError where a program was compiled that no captured function asked for: it would be again.
        """
        before = self._num_strays()
        if folder:
            api.start_trace(folder)
        yield
        if folder:
            self.wait()
            api.stop_trace()
        found = self._num_strays() - before
        if found and isinstance(self.run, Captured):
            raise RuntimeError(f"{found} programs were compiled in a step beside its captured functions: something "
                               "between them computes on the device")  # fmt: skip

    def _num_strays(self):
        return api.num_compilations() - getattr(self.run, "num_compilations", 0)

    def measures(self):
        """Name -> number, for TensorBoard after the first step: its time is that of a warm start if all were cached."""
        return {"programs/made": api.num_compilations(), "programs/from_cache": api.num_cache_hits()}


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mesh):
        ctx.mesh = mesh
        return mesh.place(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return ctx.mesh.place(grad.clone()), None
