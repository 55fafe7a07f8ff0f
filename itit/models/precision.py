"""Weights in the dtype of the products, cast once where they are used many times."""

import contextlib

import torch

from itit.program import program, runner


class CastsWeights:
    """What a module with float32 weights and products in `compute_dtype` inherits."""

    compute_dtype = torch.float32
    cast_ahead = True  # whether `weights_to_cast` names its weights
    casts = {}  # name -> its weight as cast before, inside `casts_of`
    kept = None  # name -> what stands for the weight, inside `cast_once`

    def cast(self, name, weight):
        """A weight of this module, or None, in `compute_dtype`. `name`: of the weight."""
        if weight is None or self.kept is None:
            return None if weight is None else self._cast(name, weight)
        if name not in self.kept:
            with torch.enable_grad():  # the first use may have none
                self.kept[name] = self._cast(name, weight)
        return self.kept[name]

    def _cast(self, name, weight):
        return _Cast.apply(weight, self.casts[name]) if name in self.casts else weight.to(self.compute_dtype)


class _Cast(torch.autograd.Function):
    """A weight cast before: the gradient is the weight's."""

    @staticmethod
    def forward(ctx, weight, cast):
        ctx.dtype = weight.dtype
        return cast.detach()

    @staticmethod
    def backward(ctx, grad):
        return grad.to(ctx.dtype), None


@contextlib.contextmanager
def cast_once(module):
    """Inside, every weight below `module` is cast once, whatever number of passes it serves, as autocast does.

    The gradients of all passes are then added before they are cast back, and, on several chips, exchanged once.
    """
    parts = _parts(module)
    for part in parts.values():
        part.kept = {}
    try:
        yield
    finally:
        for part in parts.values():
            del part.kept


def weights_to_cast(module):
    """Name -> (weight, the dtype that it is cast to), of the weights below `module` that are worth casting ahead."""
    return {
        f"{name}.{leaf}": (p, part.compute_dtype)
        for name, part in _parts(module).items()
        for leaf, p in part.named_parameters()
        if part.cast_ahead and p.dtype != part.compute_dtype
    }


@contextlib.contextmanager
def casts_of(module, casts):
    """Inside, these casts (name as of `weights_to_cast` -> tensor) stand for the weights."""
    parts = _parts(module)
    for full, cast in casts.items():
        name, _, leaf = full.rpartition(".")
        parts[name].casts = parts[name].casts | {leaf: cast}
    try:
        yield
    finally:
        for part in parts.values():
            vars(part).pop("casts", None)


@contextlib.contextmanager
def weights_cast(model):
    """Inside, weights that products take in another dtype are cast already, so that not every step casts them anew.

    Weights may change at its end alone. One inside another casts nothing.
    """
    if model.casts or not weights_to_cast(model):
        yield
        return
    model.casts = runner().own(model, weights_to_cast(model))
    try:
        with torch.no_grad():
            _cast_weights(model)
        with casts_of(model, model.casts):
            yield
    finally:
        model.casts = {}


@program(updates=lambda model: model.casts.values())
def _cast_weights(model):
    for name, (p, dtype) in weights_to_cast(model).items():
        model.casts[name].copy_(p.to(dtype))  # as it stands, it would be laid where the weight lies


def _parts(module):
    return {name: part for name, part in module.named_modules() if isinstance(part, CastsWeights)}
