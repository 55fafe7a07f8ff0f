"""Programs: functions that a backend may compile as a whole. Here they run as they stand.

They are called like any other function. Inside `running(runner)` the runner calls them, such as one that computes each
once for every kind of arguments and replays it. That binds a program: what it reads comes in its arguments (tensors,
tuples and dicts of them, modules; all else is constant), and nothing is computed between two programs. A program that
another one calls is a part of it.
"""

import contextlib
import contextvars
import functools
import inspect

import torch
from torch.utils import _pytree as pytree


class Eager:
    """A runner: `run(function, *args)` calls the function."""

    unroll = 1  # turns of a loop of small steps in one program

    def __call__(self, function, *args, updates=()):
        """Result of `function(*args)`. `updates`: tensors that it changes in place."""
        return function(*args)

    def own(self, module, weights):
        """Tensors without values, name -> tensor, that a module is to own for a while: shaped and placed as `weights`,
        name -> (its weight, dtype). A runner that captures gives the same each time."""
        return {name: torch.empty_like(weight, dtype=dtype) for name, (weight, dtype) in weights.items()}

    def number(self, value):
        """A number that changes from call to call, as an argument of a program."""
        return value


_AS_IT_STANDS = Eager()
_RUNNER = contextvars.ContextVar("runner", default=_AS_IT_STANDS)


def runner():
    """What runs the programs of this thread."""
    return _RUNNER.get()


@contextlib.contextmanager
def running(runner):
    """Inside, this thread's programs are run by that runner."""
    token = _RUNNER.set(runner)
    try:
        yield
    finally:
        _RUNNER.reset(token)


def program(function=None, *, varying=(), updates=None):
    """Decorator of a program.

    Args:
      varying: the names of its arguments whose numbers, also in tuples and lists, change from call to call.
      updates: (its arguments) -> the tensors that it changes in place.
    """
    if function is None:
        return functools.partial(program, varying=varying, updates=updates)
    names = list(inspect.signature(function).parameters)
    places = [names.index(name) for name in varying]

    @functools.wraps(function)
    def call(*args):
        run = runner()
        if run is _AS_IT_STANDS:
            return function(*args)
        changed = list(updates(*args)) if updates else ()
        args = [pytree.tree_map(run.number, x) if place in places else x for place, x in enumerate(args)]
        with running(_AS_IT_STANDS):
            return run(function, *args, updates=changed)

    return call


def owned_by(leaf):
    """The tensors of a module, an optimizer or averaged weights among the arguments of a program."""
    if isinstance(leaf, torch.nn.Module):
        return [*leaf.parameters(), *leaf.buffers(), *getattr(leaf, "casts", {}).values()]
    return leaf.state().values() if hasattr(leaf, "state") else []
