"""The programs of a step without its memory: traced as capture.py does, from placeholders, for the pre-flight.

A backend (see backends/connect.py) on which a step can be called once. Its tensors hold nothing: any model is traced on
any machine, and what each program reads, and how that is split, is written down.
"""

import contextlib

import torch
from torch.utils import _pytree as pytree

from itit.xla import api, sharding
from itit.xla.capture import Lazy, owned_by_all, settle, tensors_of, traced
from itit.xla.mesh import Mesh, prepare
from itit.xla.noise import CounterNoise

SCOPE = "itit/"  # goes before the name of a part in the names of its operations


class TracedMesh(Mesh):
    """A mesh whose tensors are placeholders. `run.programs` are the programs traced.

    Args:
      meant: (data, fsdp) of the mesh that the programs are for, which decide what is split; by default those traced on.
    """

    def __init__(self, data, fsdp, matmul_precision, meant=None):
        prepare(matmul_precision)
        super().__init__(data, fsdp)
        if meant:
            self.data, self.fsdp, self.num_devices = *meant, meant[0] * meant[1]
        self.specs = {}  # handle of a placeholder -> its spec
        self.run = self.sampler = Traced(self)

    def placeholder(self, shape, dtype, spec):
        tensor = api.placeholder(shape, dtype)
        self.specs[api.handle(tensor)] = spec
        return tensor

    def adopt(self, module):
        """Weights and buffers of a module on the "meta" device become placeholders."""
        for name, p in list(module.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            spec = sharding.parameter_spec(name, tuple(p.shape), self.fsdp)
            empty = torch.nn.Parameter(self.placeholder(p.shape, p.dtype, spec), p.requires_grad)
            setattr(module.get_submodule(owner), leaf, empty)
        for name, buffer in list(module.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            empty = self.placeholder(buffer.shape, buffer.dtype, (None,) * buffer.ndim)
            setattr(module.get_submodule(owner), leaf, empty)
        self.hold_rows(module)
        return module

    def place_state(self, state):
        for tensor, spec in self.state_specs(state):
            tensor.data = self.placeholder(tensor.shape, tensor.dtype, spec)

    def _joined(self, tensors, shape, spec):
        return self._fresh(shape, tensors[0].dtype, spec)

    def _fresh(self, shape, dtype, spec):
        return self.placeholder(shape, dtype, spec)

    def _compute(self):
        """Placeholders stay what they are."""

    def rows(self, shape, dtype):
        """A tensor of the global batch."""
        return self.placeholder(shape, dtype, sharding.batch_spec(tuple(shape), self.num_devices))

    def noise(self, seed, step, part=0):
        return CounterNoise(self.placeholder((2,), torch.int32, (None,)), self.place)


class Traced(Lazy):
    """Traces each function once for every kind of arguments, and counts how often it is called."""

    def __init__(self, mesh):
        super().__init__(mesh)
        self.programs, self._kinds = [], {}

    def __call__(self, function, *args, updates=()):
        leaves, structure = pytree.tree_flatten(args)
        sizes = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves)
        kind = function, structure, sizes
        if kind not in self._kinds:
            self._kinds[kind] = len(self.programs), self._trace(function, args, updates)
        number, result = self._kinds[kind]
        self.programs[number] = self.programs[number]._replace(calls=self.programs[number].calls + 1)
        return result

    def number(self, value):
        return self.mesh.placeholder((), torch.tensor(value).dtype, ())

    def _trace(self, function, args, updates):
        specs, before = self.mesh.specs, {}
        packs, leaves = self.mesh.packs, pytree.tree_leaves(args)
        for tensor in [*tensors_of(leaves), *packs.buffers(owned_by_all(leaves))]:
            before[id(tensor)] = api.handle(tensor)
        result, updated = traced(function, args, updates, packs)
        leaves, structure = pytree.tree_flatten(result)
        fresh = [x for x in leaves if isinstance(x, torch.Tensor) and all(api.are_pending([x]))]
        roots = list({api.value_id(x): x for x in [*updated, *fresh]}.values())
        for tensor in updated:
            settle(tensor)
            self.mesh.mark(tensor, specs[before[id(tensor)]])
        for root in roots[len(updated) :]:
            self.mesh.place_result(root)
        values = api.graph_inputs(roots)
        handles = api.handles(values)
        inputs = tuple((tuple(v.shape), specs.get(h, (None,) * v.ndim)) for v, h in zip(values, handles, strict=True))
        texts = {text: spec for spec, text in self.mesh.texts.items()}
        outputs = tuple((tuple(t.shape), self._spec(t, texts)) for t in roots)
        donated = tuple((handles.index(before[id(t)]), i) for i, t in enumerate(updated) if before[id(t)] in handles)
        hlo = api.hlo_proto(roots)
        self.programs.append(sharding.Program(function.__name__, 0, hlo, inputs, outputs, donated, texts))
        # From here on placeholders stand for what was computed.
        replaced = {}
        for i, root in enumerate(roots):
            shape, spec = outputs[i]
            empty = self.mesh.placeholder(shape, root.dtype, spec)
            replaced[api.value_id(root)] = empty
        leaves = [replaced.get(api.value_id(x), x) if isinstance(x, torch.Tensor) else x for x in leaves]
        for tensor in updated:
            tensor.data = replaced[api.value_id(tensor)]
        return pytree.tree_unflatten(leaves, structure)

    @staticmethod
    def _spec(tensor, specs):
        """Of a marked tensor; `specs`: text -> spec."""
        spec = specs[api.sharding_text(tensor)]
        return spec if any(spec) else (None,) * tensor.ndim


# ---------------------------------------------------------------------------------------------- names of parts


@contextlib.contextmanager
def scope(name):
    """Operations traced inside carry this name of a part, where XLA_HLO_DEBUG=1 is in the environment."""
    pushed = api.push_scope(SCOPE + name)
    yield
    del pushed


def leave(result, name):
    """What a part returns: the backward pass of the part begins there."""
    wrap = lambda x: _Leave.apply(x, name) if isinstance(x, torch.Tensor) and x.requires_grad else x  # noqa: E731
    return pytree.tree_map(wrap, result)


class _Leave(torch.autograd.Function):
    open = []  # the scope of the part whose backward pass runs

    @staticmethod
    def forward(ctx, x, name):
        ctx.name = name
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        _Leave.open[:] = []
        _Leave.open.append(api.push_scope(SCOPE + ctx.name))
        return grad, None


def end_backward():
    _Leave.open[:] = []
