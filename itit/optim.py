"""Adafactor with constant decay rates, learning-rate schedule, clipping, averaged weights (paper table 3).

The paper names Adafactor with beta1 = .9 and beta2 = .96 at an Adam-like rate of 1e-4, which is praxis'
ShardedAdafactor with `decay_method="adam"`, not torch's or Hugging Face's: no scaling by parameter size, weight decay
multiplied by the learning rate.
"""

import math

import torch

from itit.ops import stacks

_EPS = 1e-30
_FACTOR_FROM = 128  # matrices with both sides this long keep row and column means only
_SPIKES_FROM = 100  # updates before a gradient counts as a spike; its usual norm is a mean over about as many


def learning_rate(step, config):
    """Rate of a step (from 0).

    Linear over the warm-up of W steps, peak / W at step 0 and the peak at step W - 1; then a cosine that reaches 0 at
    step `num_steps`, the first one that is not run.
    """
    if step < config.lr_warmup_steps:
        return config.learning_rate * (step + 1) / config.lr_warmup_steps
    progress = (step - config.lr_warmup_steps) / max(1, config.num_steps - config.lr_warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def global_norm(tensors):
    """Euclidean norm of all elements together, float32, 0-d."""
    return torch.stack([t.float().square().sum() for t in tensors]).sum().sqrt()


def decays(name, parameter, decay_embeddings):
    """Weight decay applies to matrices; not to biases, norms, positions and single learned vectors."""
    if parameter.ndim < 2 or name.endswith("positions"):
        return False
    return decay_embeddings or not name.endswith("token_embed.weight")


class Adafactor:
    """Adafactor (arXiv:1804.04235) with first moment, constant decay rates and decoupled weight decay.

    The second moment is bias-corrected through its decay rate, b2 (1 - b2^(t-1)) / (1 - b2^t); the first is not.
    Everything, the step count included, is a tensor, so that one traced graph serves all steps.

    Args:
      named_parameters: (name, parameter) pairs; those that need no gradient are left out.
      config: OptimConfig.
    """

    def __init__(self, named_parameters, config):
        self.config = config
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self._total = lambda square: square
        device = next(iter(self.parameters.values())).device
        self.count, self.usual_norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.moments, self.squares, groups = {}, {}, {}
        for name, p in self.parameters.items():
            self.moments[name] = torch.zeros_like(p)
            if p.ndim == 2 and min(p.shape) >= _FACTOR_FROM:
                self.squares[name] = [p.new_zeros(p.shape[0]), p.new_zeros(p.shape[1])]
            else:
                self.squares[name] = [torch.zeros_like(p)]
            groups.setdefault((p.shape, decays(name, p, config.decay_embeddings)), []).append(name)
        # (names, whether they decay) of tensors that are updated as one.
        self._stacks = [(stack, decay) for (_, decay), names in groups.items()
                        for stack in stacks(self.parameters[names[0]], names)]  # fmt: skip

    def keep(self, names, total):
        """Leaves all parameters but these to other processes, each of which has its own.

        `total`: adds up a number, float32, 0-d, over the processes.
        """
        self._total = total
        for kept in (self.parameters, self.moments, self.squares):
            for name in kept.keys() - set(names):
                del kept[name]
        self._stacks = [([name], decay) for found, decay in self._stacks for name in found if name in self.parameters]

    def state(self):
        """Every tensor of the state by name, to save or to load in place."""
        state = {"count": self.count} | ({"usual_norm": self.usual_norm} if self.config.skip_spikes else {})
        state |= {f"moment/{name}": m for name, m in self.moments.items()}
        for name, squares in self.squares.items():
            state |= {f"square{i}/{name}": s for i, s in enumerate(squares)}
        return state

    @torch.no_grad()
    def step(self, rate, finite=True):
        """Clips the gradients by their global norm, updates the parameters, and clears the gradients.

        The update is skipped, and parameters and state stay bit for bit as they were, where the gradient is not finite
        anywhere, or, with config.skip_spikes, where its norm is that many times above a running mean of those before.

        Args:
          rate: learning rate, a number or a 0-d tensor.
          finite: whether the loss is, bool, 0-d; where not, the update is skipped, too.

        Returns:
          (the global norm before clipping, float32, 0-d; whether the update was made, bool, 0-d).
        """
        config = self.config
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.float() for n, p in self.parameters.items()}
        norm = self._total(global_norm(grads.values()).square()).sqrt()
        made = torch.isfinite(norm) & finite & ~self._is_spike(norm)
        clip = torch.clamp(config.grad_clip / norm, max=1.0) if config.grad_clip else torch.ones_like(norm)
        count = self.count + 1
        beta2 = config.beta2 * (1 - config.beta2 ** (count - 1)) / (1 - config.beta2**count)
        for names, decay in self._stacks:
            parameters, old = [self.parameters[n] for n in names], [[self.moments[n], *self.squares[n]] for n in names]
            weight, grad = _stack(parameters), _stack([grads[n] for n in names]) * clip
            before = [_stack(parts) for parts in zip(*old, strict=True)]
            now = _squares(grad, len(before) - 1)
            squares = [torch.lerp(a, b, beta2) for a, b in zip(now, before[1:], strict=True)]
            update = grad * _inverse_root(squares)
            if config.update_clip:
                sizes = update.square().reshape(len(names), -1).mean(1).sqrt().view(-1, *[1] * (update.ndim - 1))
                update = update / torch.clamp(sizes / config.update_clip, min=1.0)
            moment = torch.lerp(update, before[0], config.beta1)
            # Chosen before it is subtracted: over a mesh a chip has a part of it, while the weight afterwards is whole.
            change = torch.where(made, rate * (moment + (config.weight_decay if decay else 0.0) * weight), 0.0)
            new = [torch.where(made, a, b) for a, b in zip([moment, *squares], before, strict=True)]
            for p, part, tensors, parts in zip(parameters, change, old, zip(*new, strict=True), strict=True):
                p.sub_(part)
                for tensor, value in zip(tensors, parts, strict=True):
                    tensor.copy_(value)
                p.grad = None
        if config.skip_spikes:
            mean = torch.lerp(self.usual_norm, norm, (1 / count).clamp(min=1 / _SPIKES_FROM))
            # There is none yet where spikes are skipped from some later step on.
            mean = torch.where(self.usual_norm > 0, mean, norm)
            self.usual_norm.copy_(torch.where(made, mean, self.usual_norm))
        self.count.copy_(torch.where(made, count, self.count))
        return norm, made

    def _is_spike(self, norm):
        """Bool, 0-d."""
        if not self.config.skip_spikes:
            return torch.zeros_like(norm, dtype=torch.bool)
        known = (self.count >= _SPIKES_FROM) & (self.usual_norm > 0)
        return known & (norm > self.config.skip_spikes * self.usual_norm)


def _stack(tensors):
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def _squares(grad, parts):
    """The squared gradients, or the row and column means of each."""
    square = grad.square() + _EPS
    return [square] if parts == 1 else [square.mean(2), square.mean(1)]


def _inverse_root(squares):
    """1 / sqrt(v), v from its row and column means where it is factored."""
    if len(squares) == 1:
        return squares[0].rsqrt()
    rows, columns = squares
    return (rows / rows.mean(1, keepdim=True)).rsqrt()[:, :, None] * columns.rsqrt()[:, None]


class Ema:
    """Averaged weights: average <- decay average + (1 - decay) weight."""

    def __init__(self, named_parameters, decay):
        self.decay = decay
        self.average = {name: p.detach().clone() for name, p in named_parameters if p.requires_grad}
        self._whole = lambda average: average

    def keep(self, names, whole):
        """Leaves all weights but these to other processes. `whole`: averages of this one -> those of all, by name."""
        self.average, self._whole = {name: self.average[name] for name in names if name in self.average}, whole

    def whole(self):
        """Averaged weights of all processes by name, to look at."""
        return self._whole(self.average)

    def state(self):
        """The averaged weights by name, to save or to load in place."""
        return self.average

    @torch.no_grad()
    def update(self, named_parameters, made):
        """Moves the average towards the weights, unless the step's update was not `made` (bool, 0-d)."""
        for name, p in named_parameters:
            if name in self.average:
                old = self.average[name]
                old.copy_(torch.where(made, torch.lerp(old, p, 1 - self.decay), old))
