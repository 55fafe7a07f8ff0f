"""Weights in the dtype of the products, cast once where they are used many times."""

import contextlib

import torch


class CastsWeights:
    """What a module with float32 weights and products in `compute_dtype` inherits."""

    compute_dtype = torch.float32
    kept = None  # name -> what was cast, inside `cast_once`

    def cast(self, name, weight):
        """A weight, or None, in `compute_dtype`. `name`: of the weight in this module."""
        if weight is None or self.kept is None:
            return None if weight is None else weight.to(self.compute_dtype)
        if name not in self.kept:
            with torch.enable_grad():  # the first use may have none
                self.kept[name] = weight.to(self.compute_dtype)
        return self.kept[name]


@contextlib.contextmanager
def cast_once(module):
    """Inside, every weight below `module` is cast once, whatever number of passes it serves, as autocast does.

    The gradients of all passes are then added before they are cast back, and, on several chips, exchanged once.
    """
    parts = [part for part in module.modules() if isinstance(part, CastsWeights)]
    for part in parts:
        part.kept = {}
    try:
        yield
    finally:
        for part in parts:
            part.kept = None
