"""Functions of many parts on a GPU as CUDA graphs: recorded once for every kind of arguments, then started by one call.

A training step of ITIT is some 40,000 kernels, whatever its size; one by one, their launching takes longer than they
do. The first call of a kind runs as it stands, the second is recorded. What could go wrong silently is an error: other
draws than were recorded, weights that move from call to call. A function must not make the host wait, or recording
fails.
"""

import time

import torch
from absl import logging
from torch.utils import _pytree as pytree

from itit.noise import Noise
from itit.program import owned_by

MAX_MOVES = 4  # weights in training, averaged ones, and those of an evaluation between
MAX_KEPT = 32  # recordings; the one that has not been asked for the longest goes first


class Graphs:
    """`graphs(function, *args)` calls the function.

    Tensors among the arguments, in tuples, lists and dicts, floats and `noise.Noise` may change from call to call;
    another shape or dtype, and another of anything else, is another kind. What is returned is the caller's own, but
    nothing else that the function makes may outlive it, except changes in place to what modules, optimizers and
    averages among the arguments hold.
    """

    def __init__(self):
        self._recordings, self._moves = {}, {}
        self._pool = torch.cuda.graph_pool_handle()  # all compute in the same memory, one after the other

    def __call__(self, function, *args):
        leaves, structure = pytree.tree_flatten(args)
        signature = tuple(_sign(leaf) for leaf in leaves)
        owned = [t.data_ptr() for leaf in leaves for t in owned_by(leaf)]
        kind, places = (function, structure, signature), tuple(owned)
        recording = self._recordings.pop((kind, places), None)
        if recording is None:
            self._moves[kind] = self._moves.get(kind, 0) + 1
            assert self._moves[kind] <= MAX_MOVES, f"{function.__name__}: weights have moved since it was recorded"
            recording = _Recording(function, structure, self._pool)
        self._recordings[kind, places] = recording
        if len(self._recordings) > MAX_KEPT:
            oldest, _ = first = next(iter(self._recordings))
            self._moves[oldest] -= 1
            del self._recordings[first]
        return recording(leaves)


def _sign(leaf):
    """What makes another kind."""
    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype
    if isinstance(leaf, Noise):
        return Noise, None if leaf.rows is None else len(leaf.rows)
    return float if isinstance(leaf, float) else leaf


class _Recording:
    """One function and kind of arguments, of which `leaves` are given in the order of pytree."""

    def __init__(self, function, structure, pool):
        self.function, self.structure, self.pool = function, structure, pool
        self.inputs = self.graph = None

    def __call__(self, leaves):
        if self.inputs is None:
            noises = [RepeatedNoise(leaf) for leaf in leaves if isinstance(leaf, Noise)]
            device = next(t.device for leaf in leaves for t in (*owned_by(leaf), leaf) if isinstance(t, torch.Tensor))
            repeated = iter(noises)
            inputs = [_input(leaf, repeated, device) for leaf in leaves]
            result = self.run(inputs)
            self.inputs = inputs
            return result
        for held, leaf in zip(self.inputs, leaves, strict=True):
            if isinstance(leaf, Noise):
                held.restart(leaf)
            elif isinstance(leaf, float):
                held.fill_(leaf)
            elif isinstance(leaf, torch.Tensor):
                held.copy_(leaf)
        if self.graph is None:
            self.record()
        self.graph.replay()
        return pytree.tree_map_only(torch.Tensor, torch.clone, self.result)

    def run(self, inputs):
        return self.function(*pytree.tree_unflatten(inputs, self.structure))

    def record(self):
        start, graph = time.perf_counter(), torch.cuda.CUDAGraph()
        for noise in self.inputs:
            for generator in noise.generators if isinstance(noise, RepeatedNoise) else ():
                graph.register_generator_state(generator)
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            self.result = self.run(self.inputs)
        self.graph = graph
        logging.info("%s: recorded as a CUDA graph, %.1f s", self.function.__name__, time.perf_counter() - start)


def _input(leaf, repeated, device):
    """What stands in the place of an argument, call for call."""
    if isinstance(leaf, Noise):
        return next(repeated)
    if isinstance(leaf, float):
        return torch.full((), leaf, device=device)
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


class RepeatedNoise(Noise):
    """The draws of `Noise` for a function that is run once, then recorded and replayed.

    A recorded draw goes on with the generator that it was recorded with: `restart` seeds them all anew.
    """

    def __init__(self, noise):
        super().__init__(*noise.key[:2], noise.device, noise.key[2], noise.rows, noise.share, noise.fused)
        self._seeds_dropout = False
        self._draws, self._next = [], None  # (name, place, generator) of each; the next one, once they are repeated

    @property
    def generators(self):
        return [generator for _, _, generator in self._draws]

    def restart(self, noise):
        """Draws as that `Noise` would."""
        self.key, self.rows, self._next = noise.key, noise.rows, 0
        for name, place, generator in self._draws:
            self._seed(generator, name, place)
        if self._seeds_dropout:
            super().seed_dropout()

    def seed_dropout(self):
        if self._next is None:
            self._seeds_dropout = True
            super().seed_dropout()

    def _generator(self, name, place=None):
        if self._next is None:
            self._draws.append((name, place, super()._generator(name, place)))
            return self._draws[-1][-1]
        *known, generator = self._draws[self._next]
        assert known == [name, place], f"draws {name} where it drew {known[0]} before"
        self._next += 1
        return generator
