"""How much arithmetic a training step of ITIT needs, by part: the very step, on tensors without numbers, as torch
counts it.

Model FLOPs: two for each multiplication of a matrix product or convolution that the method asks for. Attention counts
in full (masks skip nothing), element-wise work counts nothing, and what a backend does besides (recomputation, lookups
as products with one-hot matrices) does not count either. No text ends early.
"""

import contextlib
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from itit.program import Eager, running
from itit.train_step import train_step
from tools.timing.parts import PARTS, REST, labelled
from tools.tpu.step_programs import META, Nowhere, empty_batch, empty_state


def step_flops(config, active, vqgan=None):
    """FLOPs of one training step: part -> number; parts that a step does not have are left out.

    Args:
      config: a resolved Config.
      active: task -> samples (see `train_step.tasks`).
      vqgan: VqganConfig where pictures are tokenized in the step, None where codes are ready.

    Raises ValueError for an operation that is neither torch's own nor known to its counter.
    """
    state, batch = empty_state(config, vqgan, Nowhere()), empty_batch(config, active, vqgan, Nowhere())
    state = state._replace(optimizer=_Optimizer(), ema=None)
    ranges, counter = _Ranges(), FlopCounterMode(display=False)
    counter.mod_tracker = ranges  # it asks this to whom a product belongs
    # The image tokenizer switches autocast off, which is not there for such tensors.
    no_autocast = mock.patch.object(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    parts, once = labelled(state, ranges.enter, ranges.leave), running(_Once(counter))
    with _Known(counter.flop_registry), counter, parts, once, no_autocast:
        train_step(state, batch, [_Noise()], 0.0, config, active)
    found = {part: sum(counts.values()) for part, counts in counter.get_flop_counts().items()}
    return {part: found[part] for part in PARTS if found.get(part)}


class _Ranges(contextlib.nullcontext):
    """The part whose products are computed, in the place of the counter's own tracker of modules."""

    def __init__(self):
        super().__init__()
        self._part, self._in_backward = REST, False

    @property
    def parents(self):
        # What has a gradient in the middle of a backward pass is computed once more, to save memory.
        return set() if self._in_backward and torch.is_grad_enabled() else {self._part}

    @contextlib.contextmanager
    def enter(self, part):
        before, self._part, self._in_backward = self._part, part, False
        yield
        self._part = before

    def leave(self, result, part):
        """The result of a part: its backward pass begins there."""
        return pytree.tree_map(lambda x: _Leave.apply(x, self, part) if isinstance(x, torch.Tensor) else x, result)

    def go_back(self, part):
        self._part, self._in_backward = part, True


class _Leave(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx, x, ranges, part):
        ctx.where = ranges, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ranges, part = ctx.where
        ranges.go_back(part)
        return grad, None, None


class _Once(Eager):
    """Runs each kind of call once (see program.py), such as a step of decoding, and counts it as often as it is called.

    Args:
      counter: torch's.
    """

    def __init__(self, counter):
        self._counter, self._kinds = counter, {}

    def __call__(self, function, *args, updates=()):
        leaves, structure = pytree.tree_flatten(args)
        sizes = tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x for x in leaves)
        kind, counts = (function, structure, sizes), self._counter.flop_counts
        if kind not in self._kinds:
            before = {part: dict(numbers) for part, numbers in counts.items()}
            result = function(*args)
            more = {part: {name: number - before.get(part, {}).get(name, 0) for name, number in numbers.items()}
                    for part, numbers in counts.items()}  # fmt: skip
            self._kinds[kind] = result, more
            return result
        result, more = self._kinds[kind]
        for part, numbers in more.items():
            for name, number in numbers.items():
                counts[part][name] += number
        return result

    def number(self, value):
        return torch.empty((), dtype=torch.tensor(value).dtype, device=META)


class _Known(TorchDispatchMode):
    """Inside, an operation that is not torch's own and has no formula is refused, and not counted as nothing."""

    def __init__(self, formulas):
        super().__init__()
        self._formulas = formulas

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace not in ("aten", "prim", "prims") and function._overloadpacket not in self._formulas:
            raise ValueError(f"{function}: nobody says how much arithmetic it is; see torch's register_flop_formula")
        return function(*args, **kwargs or {})


class _Optimizer:
    """Stands for one whose step is left out: it multiplies no matrices."""

    def state(self):
        return {}

    def step(self, rate, finite):
        return torch.empty((), device=META), finite


class _Noise:
    """Draws without numbers."""

    def __call__(self, name, shape):
        return torch.empty(shape, device=META)

    def start_dropout(self, model, is_first=True):
        """Torch's own generators stay as they are: here nothing is drawn."""
