"""The captured step: functions traced by PyTorch/XLA once, and from then on started as the programs they compiled to.

A lazily traced step of ITIT costs seconds of the host's time. Here each program of it (see program.py) is traced once,
for every kind of arguments. From then on it is started as it was compiled: tensors that it updates are donated to it
and replaced by its results, the others are its inputs. What could go wrong silently is an error: torch's own random
numbers inside (draws come from `CounterNoise`), tensors that it reads and was not given, operations that fall back to
the host, arguments of another shape, dtype or sharding, work between two calls.
"""

import contextlib
import gc
import time
import weakref

import torch
from absl import logging
from torch.utils import _pytree as pytree

from itit.program import owned_by
from itit.xla import api

_CONSTANTS = set()  # handles of the numbers inside all captured functions


class Lazy:
    """Runs a function as torch_xla does by itself, traced anew at every call; for debugging."""

    unroll = 16

    def __init__(self, mesh):
        self.mesh, self._numbers, self._owned = mesh, {}, weakref.WeakKeyDictionary()

    def __call__(self, function, *args, updates=()):
        result, _ = traced(function, args, updates, self.mesh.packs)
        for tensor in tensors_of(result):
            if all(api.are_pending([tensor])):
                self.mesh.place_result(tensor)
        api.sync(wait=True)  # the next call asks for handles
        return result

    def own(self, module, weights):
        if module not in self._owned:
            self._owned[module] = self.mesh.empty(weights)
        return self._owned[module]

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
        others = tuple(None if isinstance(x, torch.Tensor) else x for x in leaves)
        kind = function, structure, others, self.mesh.packs.held(others)
        signature = self._sign(tensors)
        graph = self.graphs.get((kind, signature))
        if graph is None:
            if self.strict and kind in self._kinds:
                raise ValueError(_difference(function, args, self._kinds[kind], signature))
            start = time.perf_counter()
            # What is held shares its tensors with those that are now traced to be updated, and would stay pending.
            api.wait()
            for other in self.graphs.values():
                other.release()
            graph = self.graphs[kind, signature] = _Graph(function, args, leaves, tensors, updates, self.mesh)
            self._kinds[kind] = signature
            self.num_compilations += graph.num_compilations
            logging.info("captured %s: %d inputs, %d updated, %d results, %.1f s", function.__name__,
                         len(graph.sources), len(graph.updated), graph.num_results,
                         time.perf_counter() - start)  # fmt: skip
        return graph.replay(tensors)

    def own(self, module, weights):
        before = api.num_compilations()
        owned = super().own(module, weights)
        self.num_compilations += api.num_compilations() - before
        return owned

    @staticmethod
    def _sign(tensors):
        """Shape, dtype, sharding of each, and which earlier one it is the same tensor as."""
        specs = api.sharding_texts(tensors)
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
        api.sync()
        api.wait()
        compilations = api.num_compilations()
        owned = mesh.packs.buffers(owned_by_all(leaves))
        known = {}  # handle -> index into the arguments, or the tensor itself where a module owns it
        for handle, tensor in zip(api.handles(owned), owned, strict=True):
            known[handle] = tensor
        for i, handle in enumerate(api.handles(tensors)):
            assert handle not in known or tensors[i] is tensors[known[handle]], (
                f"{function.__name__}: two of its arguments share a buffer"
            )
            known.setdefault(handle, i)
        # Held until the end: the handle of one that is freed meanwhile may be given to a number inside.
        others = {handle: x for handle, x in _live().items() if handle not in known and handle not in _CONSTANTS}
        seed = api.handle(api.base_seed(mesh.device))

        before = api.fallbacks()
        result, updated = traced(function, args, updates, mesh.packs)
        fallen = sorted(api.fallbacks().items() - before.items())
        # Their results would come back as they are now, for ever.
        assert not fallen, f"{function.__name__}: falls back to the host: {[name for name, _ in fallen]}"
        self._result, self._structure = pytree.tree_flatten(result)
        pending = [t for t in self._result if isinstance(t, torch.Tensor)]
        roots, places = list(updated), {api.value_id(t): i for i, t in enumerate(updated)}
        for tensor, p in zip(pending, api.are_pending(pending), strict=True):
            key = api.value_id(tensor)
            if p and key not in places:
                places[key] = len(roots)
                roots.append(mesh.place_result(tensor))
                places[api.value_id(tensor)] = places[key]
        # Each result: a root by number, one of the tensors that were there before, or a constant.
        self._result = [self._origin(leaf, places, known) for leaf in self._result]

        values = api.graph_inputs(roots)
        handles = api.handles(values)
        if seed in handles:
            raise AssertionError(f"{function.__name__} draws torch's own random numbers, which would repeat")
        read = [v for v, handle in zip(values, handles, strict=True) if handle in others]
        assert not read, f"{function.__name__} reads what it was not given: {[_describe(t) for t in read]}"
        self.sources = [known.get(handle, value) for value, handle in zip(values, handles, strict=True)]
        _CONSTANTS.update(handle for handle in handles if handle not in known)
        ids = {id(t) for t in updated}
        for value, source in zip(values, self.sources, strict=True):
            if id(tensors[source] if isinstance(source, int) else source) in ids:
                api.donate(value)
        self._hash = api.compile_graph(roots) if roots else None
        self.num_compilations = api.num_compilations() - compilations
        self.num_results = len(roots) - len(updated)
        # What is updated: an argument by number, or a tensor that a module owns.
        by_id = {id(t): i for i, t in enumerate(tensors)}
        self.updated = [by_id.get(id(t), t) for t in updated]
        self.release()
        self._first = values  # the arguments themselves now hold what was traced

    def _origin(self, leaf, places, known):
        if not isinstance(leaf, torch.Tensor):
            return lambda results, tensors: leaf
        key = api.value_id(leaf)
        if key in places:
            number = places[key]
            return lambda results, tensors: results[number]
        source = known.get(api.handle(leaf), leaf)
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
            if any(api.are_pending(tensors)):
                raise AssertionError("work between two captured calls; do it inside one")
            inputs = [tensors[source] if isinstance(source, int) else source for source in self.sources]
        results = api.run_graph(self._hash, inputs) if self._hash else []
        # Hold one generation: destroying a donated buffer while its computation runs blocks the host.
        self._held, self._last = self._last, results
        for target, value in zip(self.updated, results, strict=False):
            (tensors[target] if isinstance(target, int) else target).data = value
        return pytree.tree_unflatten([origin(results, tensors) for origin in self._result], self._structure)


def traced(function, args, updates, packs):
    """Calls the function. Returns its result, and those of its updates that were made, each split as it was."""
    updates = packs.buffers(tensors_of(updates))
    shardings = [api.sharding_of(t) for t in updates]
    # Equal numbers inside share a buffer; outside they must not: one may be an argument.
    api.set_device_data_cache(True)
    try:
        with packs.opened(owned_by_all(pytree.tree_leaves(args))):
            result = function(*args)
    finally:
        api.set_device_data_cache(False)
    made = [pair for pair, p in zip(zip(updates, shardings, strict=True), api.are_pending(updates), strict=True) if p]
    for tensor, before in made:  # the compiler would choose for itself where what is whole on every chip comes out
        if before is not None:
            settle(tensor)
            api.mark_sharding(tensor, before)
    return result, [tensor for tensor, _ in made]


def settle(tensor):
    """Before it is marked: what is computed last, too, is then computed where its parts are, not after the gather."""
    api.barrier(tensor)


def owned_by_all(leaves):
    return [t for leaf in leaves for t in owned_by(leaf)]


def tensors_of(tree):
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _live():
    """Handle -> tensor, of the buffers of all XLA tensors that Python knows."""
    live = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.is_xla]
    handles = {}
    for tensor, pending in zip(live, api.are_pending(live), strict=True):
        if not pending:
            with contextlib.suppress(RuntimeError):  # donated, and gone
                handles[api.handle(tensor)] = tensor
    return handles


def _describe(x):
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
