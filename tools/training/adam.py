"""Adam (arXiv:1412.6980) as the tokenizer's training needs it: no weight decay, all of its state in tensors.

One captured step serves the whole run.
"""

import math

import torch

_EPS = 1e-8


class Adam:
    """Adam.

    Args:
      named_parameters: (name, parameter) pairs; those that need no gradient are left out.
      beta1, beta2: decay rates of the two moments.
    """

    def __init__(self, named_parameters, beta1, beta2):
        self.beta1, self.beta2 = beta1, beta2
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.moments = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def state(self):
        """Every tensor of the state by name, to save or to load in place."""
        moments = {f"moment/{name}": tensor for name, tensor in self.moments.items()}
        return moments | {f"square/{name}": tensor for name, tensor in self.squares.items()}

    def factors(self, rate, count):
        """The two numbers that `step` number `count` (from 1) takes; they change from step to step."""
        return rate / (1 - self.beta1**count), math.sqrt(1 - self.beta2**count)

    def gradients(self, loss):
        """Of a loss by the parameters, in their order; zeros where a parameter has no part in it."""
        parameters = list(self.parameters.values())
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    @torch.no_grad()
    def step(self, gradients, factors):
        """Updates the parameters in place by `gradients`, in their order. `factors`: see there."""
        size, root = factors
        for (name, p), gradient in zip(self.parameters.items(), gradients, strict=True):
            moment, square = self.moments[name], self.squares[name]
            moment.lerp_(gradient, 1 - self.beta1)
            square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            p.add_((-size * moment) / (square.sqrt() / root).add_(_EPS))
