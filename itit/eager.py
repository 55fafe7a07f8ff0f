"""How the parts of a step run: here as they stand, one operation after the other; on XLA captured (xla/capture.py)."""

import torch


class Eager:
    """`run(function, *args)` calls the function.

    A runner that captures computes it once for every kind of arguments and replays it, which binds the caller: what a
    function reads comes in its arguments (tensors, tuples and dicts of them, modules; all else is constant), numbers
    that change from call to call go through `number`, and nothing is computed between two calls.
    """

    unroll = 1  # turns of a loop of small steps in one call

    def __call__(self, function, *args, updates=()):
        """Result of `function(*args)`. `updates`: tensors that it changes in place."""
        return function(*args)

    def own(self, module, weights):
        """Tensors without values, name -> tensor, that a module is to own for a while: shaped and placed as `weights`,
        name -> (its weight, dtype). A runner that captures gives the same each time."""
        return {name: torch.empty_like(weight, dtype=dtype) for name, (weight, dtype) in weights.items()}

    def number(self, value):
        """A number that changes from call to call, as an argument of `run`."""
        return value


def owned_by(leaf):
    """The tensors of a module, an optimizer or averaged weights among the arguments of a function."""
    if isinstance(leaf, torch.nn.Module):
        return [*leaf.parameters(), *leaf.buffers(), *getattr(leaf, "casts", {}).values()]
    return leaf.state().values() if hasattr(leaf, "state") else []
