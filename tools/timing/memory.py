"""How much memory of a GPU a training step takes: the very step on tensors without numbers, every one of them counted
from the operation that makes it until nobody holds it.

What a GPU has in other forms than a processor stands here by itself: fused attention and dropout. Not counted are what
the libraries keep for themselves, and what lies unused between tensors.
"""

import contextlib
import weakref
from typing import NamedTuple
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from itit import ops
from itit.models import layers
from itit.models.layers import recompute_blocks
from itit.program import Eager, running
from itit.train_step import train_step
from tools.tpu.step_programs import META, Nowhere, empty_batch, empty_state

BLOCK = 512  # bytes; torch gives out whole ones


class Memory(NamedTuple):
    """Bytes: of the weights of ITIT, of what the optimizer and the averages keep, of the text encoder; the most that
    there was at once, these included."""

    model: int
    state: int
    text_encoder: int
    peak: int


def step_memory(config, active):
    """The Memory of one training step on ready ids. `config`: resolved; `active`: task -> samples of this device."""
    state, batch = empty_state(config, None, Nowhere()), empty_batch(config, active, None, Nowhere())
    if config.train.recompute_blocks:
        recompute_blocks(state.model)
    kept = [_bytes(state.model.parameters()), 0, _bytes(state.t5.state_dict().values())]
    kept[1] = _bytes(state.tensors().values()) - kept[0]
    noises = [_Noise()] * config.optim.num_microbatches
    there = [*state.tensors().values(), *state.t5.state_dict().values(), *batch.values()]
    with _Live(there) as live, _on_gpu(), running(_FewTokens()):
        train_step(state, batch, noises, 0.0, config, active)
    return Memory(*kept, live.peak)


def _bytes(tensors):
    return sum(_rounded(t.nbytes) for t in tensors)


def _rounded(count):
    return -(-count // BLOCK) * BLOCK


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors while they live. `given`: those that there are already. `peak`: the most."""

    def __init__(self, given):
        super().__init__()
        self.now = self.peak = 0
        self._known = weakref.WeakSet()
        for tensor in given:
            self._meet(tensor)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._meet(leaf)
        return result

    def _meet(self, tensor):
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        count = _rounded(storage.nbytes())
        self.now += count
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._leave, count)

    def _leave(self, count):
        self.now -= count


class _FewTokens(Eager):
    """Computes two tokens of a synthesized text, for all of them: each takes the same."""

    def __call__(self, function, *args, updates=()):
        if function.__name__ != "greedy_steps":
            return function(*args)
        _, caption, cache, first, *_ = args
        return function(*args) if first < 2 else (caption, cache)


class _Noise:
    """Draws without numbers."""

    def __call__(self, name, shape):
        return torch.empty(shape, device=META)

    def start_dropout(self, model, is_first=True):
        """Torch's own generators stay as they are: here nothing is drawn."""


@contextlib.contextmanager
def _on_gpu():
    """Inside, a step keeps what it would keep on a GPU."""
    forms = {(ops.attend, "meta"): _attend}
    with mock.patch.dict(ops.FORMS, forms), mock.patch.object(layers.F, "dropout", _dropout):
        yield


def _attend(q, k, v, mask, dropout=None):
    """`ops.attend` by the kernels that torch takes on a GPU: with a mask, or in float32, another one."""
    rate = dropout.rate if dropout is not None and dropout.drops else 0.0
    if mask is None and q.dtype == torch.bfloat16:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, rate)[0]
    if mask is not None:
        mask = torch.zeros_like(mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    grads = torch.is_grad_enabled() and q.requires_grad
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, grads, rate)[0]


def _dropout(x, rate):
    return torch.native_dropout(x, rate, True)[0]
