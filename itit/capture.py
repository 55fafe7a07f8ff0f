"""The captured step: functions traced by PyTorch/XLA once, and from then on started as the programs they compiled to.

A lazily traced step of ITIT costs seconds of the host's time. Here each function that `run` is given (see eager.py) is
traced once for every kind of arguments; from then on its program is started directly: tensors that it updates are
donated to it and replaced by its results, the others are its inputs. What could go wrong silently is an error: torch's
own random numbers inside (draws come from `noise.CounterNoise`), tensors that it reads and was not given, operations
that fall back to the host, arguments of another shape, dtype or sharding, work between two calls.
"""

import contextlib
import gc
import time

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as counters
from absl import logging
from torch.utils import _pytree as pytree
from torch_xla.utils.buffer_donor_context import alias_with_buffer_donor_config

from itit import sharding
from itit.eager import owned_by

_C = torch_xla._XLAC
_CONSTANTS = set()  # handles of the numbers inside all captured functions


class Lazy:
    """Runs a function as torch_xla does by itself, traced anew at every call; for debugging."""

    unroll = 16

    def __init__(self, mesh):
        self.mesh, self._numbers = mesh, {}

    def __call__(self, function, *args, updates=()):
        result = traced(function, args)
        for tensor in tensors_of(result):
            if all(_C._check_tensor_need_materialization([tensor])):
                self.mesh.place_result(tensor)
        torch_xla.sync()
        return result

    def hold(self, name, weight):
        return self.mesh.mark(weight, sharding.parameter_spec(name, tuple(weight.shape), self.mesh.fsdp))

    def number(self, value):
        if isinstance(value, int) and value in self._numbers:  # whole numbers come again in every loop
            return self._numbers[value]
        tensor = self.mesh.place(torch.tensor(value, device=self.mesh.device))
        if isinstance(value, int):
            self._numbers[value] = tensor
        return tensor


class Captured(Lazy):
    """Runs a function by its compiled computation, traced once for every kind of arguments.

    Args:
      strict: a second set of shapes for the same function and settings is an error, not another capture.

    `graphs`: the captured functions, in order.
    """

    def __init__(self, mesh, strict=True):
        super().__init__(mesh)
        self.strict, self.graphs, self._kinds = strict, {}, {}
        self.num_compilations = 0

    def __call__(self, function, *args, updates=()):
        leaves, structure = pytree.tree_flatten(args)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        kind = function, structure, tuple(None if isinstance(x, torch.Tensor) else x for x in leaves)
        signature = self._sign(tensors)
        graph = self.graphs.get((kind, signature))
        if graph is None:
            if self.strict and kind in self._kinds:
                raise ValueError(_difference(function, args, self._kinds[kind], signature))
            start = time.perf_counter()
            # What is held shares its tensors with those that are now traced to be updated, and would stay pending.
            xm.wait_device_ops()
            for other in self.graphs.values():
                other.release()
            graph = self.graphs[kind, signature] = _Graph(function, args, leaves, tensors, updates, self.mesh)
            self._kinds[kind] = signature
            self.num_compilations += graph.num_compilations
            logging.info("captured %s: %d inputs, %d updated, %d results, %.1f s", function.__name__,
                         len(graph.sources), len(graph.updated), graph.num_results,
                         time.perf_counter() - start)  # fmt: skip
        return graph.replay(tensors)

    @staticmethod
    def _sign(tensors):
        """Shape, dtype, sharding of each, and which earlier one it is the same tensor as."""
        specs = _C._get_xla_sharding_specs(tensors) if tensors else []
        first = {id(t): i for i, t in reversed(list(enumerate(tensors)))}
        return tuple((tuple(t.shape), t.dtype, spec, first[id(t)]) for t, spec in zip(tensors, specs, strict=True))


def _difference(function, args, old, new):
    """One line: the first argument of another kind."""
    leaves = pytree.tree_flatten_with_path(args)[0]
    paths = [pytree.keystr(path) for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    for path, before, now in zip(paths, old, new, strict=True):
        if before != now:
            return f"{function.__name__}: argument {path} was {before} when it was captured, and is {now} now"
    return f"{function.__name__}: arguments changed"


class _Graph:
    """One captured function."""

    def __init__(self, function, args, leaves, tensors, updates, mesh):
        torch_xla.sync()
        xm.wait_device_ops()
        compilations = num_compilations()
        owned = [t for leaf in leaves for t in owned_by(leaf)]
        known = {}  # handle -> index into the arguments, or the tensor itself where a module owns it
        for handle, tensor in zip(_C._get_tensors_handle(owned), owned, strict=True):
            known[handle] = tensor
        for i, handle in enumerate(_C._get_tensors_handle(tensors)):
            assert handle not in known or tensors[i] is tensors[known[handle]], (
                f"{function.__name__}: two of its arguments share a buffer"
            )
            known.setdefault(handle, i)
        # Held until the end: the handle of one that is freed meanwhile may be given to a number inside.
        others = {handle: x for handle, x in _live().items() if handle not in known and handle not in _CONSTANTS}
        seed = _C._get_tensors_handle([_C._get_base_seed_as_tensor(str(mesh.device))])[0]

        shardings = {id(t): _C._get_xla_op_sharding(t) for t in tensors_of(updates)}
        before = fallbacks()
        result = traced(function, args)
        fallen = sorted(fallbacks().items() - before.items())
        # Their results would come back as they are now, for ever.
        assert not fallen, f"{function.__name__}: falls back to the host: {[name for name, _ in fallen]}"
        self._result, self._structure = pytree.tree_flatten(result)
        pending = [t for t in self._result if isinstance(t, torch.Tensor)]
        updated = [t for t, p in zip(tensors_of(updates), are_pending(tensors_of(updates)), strict=True) if p]
        for tensor in updated:  # the compiler would choose for itself where what is whole on every chip comes out
            if shardings[id(tensor)] is not None:
                _C._xla_mark_sharding(tensor, shardings[id(tensor)])
        roots, places = list(updated), {_C._unique_id_for_ir_and_data(t): i for i, t in enumerate(updated)}
        for tensor, p in zip(pending, are_pending(pending), strict=True):
            key = _C._unique_id_for_ir_and_data(tensor)
            if p and key not in places:
                places[key] = len(roots)
                roots.append(mesh.place_result(tensor))
                places[_C._unique_id_for_ir_and_data(tensor)] = places[key]
        # Each result: a root by number, one of the tensors that were there before, or a constant.
        self._result = [self._origin(leaf, places, known) for leaf in self._result]

        _, values = _C._get_tensors_xla_device_data_node(roots)
        handles = _C._get_tensors_handle(values)
        if seed in handles:
            raise AssertionError(f"{function.__name__} draws torch's own random numbers, which would repeat")
        read = [v for v, handle in zip(values, handles, strict=True) if handle in others]
        assert not read, f"{function.__name__} reads what it was not given: {[_describe(t) for t in read]}"
        self.sources = [known.get(handle, value) for value, handle in zip(values, handles, strict=True)]
        _CONSTANTS.update(handle for handle in handles if handle not in known)
        ids = {id(t) for t in updated}
        for value, source in zip(values, self.sources, strict=True):
            if id(tensors[source] if isinstance(source, int) else source) in ids:
                _C._set_buffer_donation(value, True)
        self._hash = None  # nothing to compute
        if roots:
            with alias_with_buffer_donor_config(True):
                self._hash = _C._get_graph_hash(roots)
                _C._xla_warm_up_cache(roots, [])  # compiles
        self.num_compilations = num_compilations() - compilations
        self.num_results = len(roots) - len(updated)
        # What is updated: an argument by number, or a tensor that a module owns.
        by_id = {id(t): i for i, t in enumerate(tensors)}
        self.updated = [by_id.get(id(t), t) for t in updated]
        self.release()
        self._first = values  # the arguments themselves now hold what was traced

    def _origin(self, leaf, places, known):
        if not isinstance(leaf, torch.Tensor):
            return lambda results, tensors: leaf
        key = _C._unique_id_for_ir_and_data(leaf)
        if key in places:
            number = places[key]
            return lambda results, tensors: results[number]
        source = known.get(_C._get_tensors_handle([leaf])[0], leaf)
        return (
            (lambda results, tensors: tensors[source]) if isinstance(source, int) else lambda results, tensors: source
        )

    def release(self):
        """Lets go of the results of the last replays, which must have ended."""
        self._held = self._last = None

    def replay(self, tensors):
        """Starts the computation on these arguments; returns what the function returned."""
        if self._first is not None:
            inputs, self._first = self._first, None
        else:
            if any(are_pending(tensors)):
                raise AssertionError("work between two captured calls; do it inside one")
            inputs = [tensors[source] if isinstance(source, int) else source for source in self.sources]
        results = _C._run_cached_graph(self._hash, inputs) if self._hash else []
        # Hold one generation: destroying a donated buffer while its computation runs blocks the host.
        self._held, self._last = self._last, results
        for target, value in zip(self.updated, results, strict=False):
            (tensors[target] if isinstance(target, int) else target).data = value
        return pytree.tree_unflatten([origin(results, tensors) for origin in self._result], self._structure)


def num_compilations():
    """Programs made so far in this process."""
    data = counters.metric_data("CompileTime")
    return data[0] if data else 0


def fallbacks():
    """Operation -> times that it ran on the host since XLA has it not."""
    return {name: counters.counter_value(name) for name in counters.executed_fallback_ops()}


def traced(function, args):
    """Calls the function. Equal numbers inside share a buffer; outside they must not: one may be an argument."""
    _C._set_xla_enable_device_data_cache(True)
    try:
        return function(*args)
    finally:
        _C._set_xla_enable_device_data_cache(False)


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def are_pending(tensors):
    return _C._check_tensor_need_materialization(tensors) if tensors else []


def _live():
    """Handle -> tensor, of the buffers of all XLA tensors that Python knows."""
    live = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type == "xla"]
    handles = {}
    for tensor, pending in zip(live, are_pending(live), strict=True):
        if not pending:
            with contextlib.suppress(RuntimeError):  # donated, and gone
                handles[_C._get_tensors_handle([tensor])[0]] = tensor
    return handles


def _describe(x):
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
