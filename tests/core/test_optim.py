"""Adafactor, schedule, clipping and averages against NumPy in float64."""

import copy
import math

import numpy as np
import pytest
import torch

from itit import optim
from itit.config import OptimConfig
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

SHAPES = {
    "blocks.0.mlp.up.weight": (130, 140),  # factored
    "blocks.0.attention.out.weight": (200, 127),  # one side too short to be factored
    "blocks.0.mlp.up.bias": (300,),
    "encoder.token_embed.weight": (150, 129),
    "encoder.image_positions": (140, 130),
    "image_decoder.mask_vector": (32,),
    "image_decoder.positions": (20, 8),
    **{f"blocks.{i}.mlp.up.weight": (130, 140) for i in (1, 2)},  # updated as one with that of block 0
    **{f"blocks.{i}.mlp.up.bias": (300,) for i in (1, 2, 3)},
    "blocks.1.positions": (130, 140),  # of the same shape, and does not decay
}
DECAYED = (*(f"blocks.{i}.mlp.up.weight" for i in range(3)), "blocks.0.attention.out.weight",
           "encoder.token_embed.weight")  # fmt: skip


def parameters():
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def gradients():
    """Very different sizes, so that both clips act."""
    return {name: torch.randn(shape) * 10 ** float(torch.empty(()).uniform_(-3, 1)) for name, shape in SHAPES.items()}


def reference_steps(start, grads, rates, c, decayed):
    """The specification's five lines, step by step, parameter by parameter."""
    theta = {name: p.detach().double().numpy().copy() for name, p in start.items()}
    m = {name: np.zeros_like(p) for name, p in theta.items()}
    v, rows, columns, norms = {}, {}, {}, []
    for t, (step_grads, rate) in enumerate(zip(grads, rates, strict=True), 1):
        g = {name: x.double().numpy() for name, x in step_grads.items()}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        norms.append(norm)
        decay = c.beta2 * (1 - c.beta2 ** (t - 1)) / (1 - c.beta2**t)
        for name in theta:
            grad = g[name] * (c.grad_clip / norm if c.grad_clip and norm > c.grad_clip else 1)
            square = grad**2 + 1e-30
            if grad.ndim == 2 and min(grad.shape) >= 128:
                rows[name] = decay * rows.get(name, 0) + (1 - decay) * square.mean(axis=1)
                columns[name] = decay * columns.get(name, 0) + (1 - decay) * square.mean(axis=0)
                second = np.outer(rows[name], columns[name]) / rows[name].mean()
            else:
                second = v[name] = decay * v.get(name, 0) + (1 - decay) * square
            u = grad / np.sqrt(second)
            if c.update_clip:
                u = u / max(1, np.sqrt((u**2).mean()) / c.update_clip)
            m[name] = c.beta1 * m[name] + (1 - c.beta1) * u
            theta[name] = theta[name] - rate * m[name] - rate * (c.weight_decay if name in decayed else 0) * theta[name]
    return theta, m, norms


@pytest.mark.parametrize(
    "changes",
    [{}, {"grad_clip": 0.0}, {"update_clip": 0.0}, {"decay_embeddings": False}, {"update_clip": 0.3, "beta2": 0.7}],
)
@pytest.mark.parametrize("together", [False, True])
def test_adafactor_equals_numpy(changes, together, monkeypatch):
    monkeypatch.setattr(optim, "stacks", lambda x, names: [names] if together else [[name] for name in names])
    config = OptimConfig(**{"weight_decay": 0.5} | changes)
    params = parameters()
    grads, rates = [gradients() for _ in range(5)], [float(torch.rand(())) * 0.3 for _ in range(5)]
    decayed = [name for name in DECAYED if config.decay_embeddings or "token_embed" not in name]
    theta, m, norms = reference_steps(params, grads, rates, config, decayed)
    optimizer = optim.Adafactor(params.items(), config)
    for step_grads, rate, norm in zip(grads, rates, norms, strict=True):
        for name, p in params.items():
            p.grad = step_grads[name].clone()
        np.testing.assert_allclose(optimizer.step(rate)[0].item(), norm, rtol=1e-5)
        assert all(p.grad is None for p in params.values())
    for name, p in params.items():
        np.testing.assert_allclose(p.detach().numpy(), theta[name], atol=2e-5, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(optimizer.moments[name].numpy(), m[name], atol=2e-5, rtol=1e-3, err_msg=name)


def test_only_large_matrices_are_factored():
    state = optim.Adafactor(parameters().items(), OptimConfig()).state()
    factored = {name.removeprefix("square1/") for name in state if name.startswith("square1/")}
    assert factored == {name for name, shape in SHAPES.items() if len(shape) == 2 and min(shape) >= 128}
    assert state["square0/blocks.0.mlp.up.weight"].shape == (130,)
    assert state["square1/blocks.0.mlp.up.weight"].shape == (140,)


def test_state_round_trip_goes_on_bit_for_bit():
    config, params = OptimConfig(), parameters()
    optimizer = optim.Adafactor(params.items(), config)
    grads = [gradients() for _ in range(4)]

    def step(optimizer, params, step_grads):
        for name, p in params.items():
            p.grad = step_grads[name].clone()
        optimizer.step(1e-2)

    for step_grads in grads[:2]:
        step(optimizer, params, step_grads)
    others = copy.deepcopy(params)
    other = optim.Adafactor(others.items(), config)
    for name, tensor in other.state().items():
        tensor.copy_(optimizer.state()[name])
    for step_grads in grads[2:]:
        step(optimizer, params, step_grads)
        step(other, others, step_grads)
    assert all(torch.equal(params[name], others[name]) for name in params)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.state().values(), other.state().values(), strict=True))


def bits(tensors):
    """Name -> the very bits, copied: a zero that turns negative is seen, too."""
    return {name: tensor.detach().clone().view(-1).view(torch.uint8) for name, tensor in tensors.items()}


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, "loss"])
@pytest.mark.parametrize("skip_spikes", [0.0, 5.0])
def test_what_is_not_finite_changes_nothing(poison, skip_spikes):
    params = parameters()
    optimizer = optim.Adafactor(params.items(), OptimConfig(skip_spikes=skip_spikes))
    average = optim.Ema(params.items(), 0.9)
    for bad in (False, True):
        for name, grad in gradients().items():
            params[name].grad = grad
        if bad and poison != "loss":
            params["blocks.0.mlp.up.bias"].grad[7] = poison
        params["image_decoder.mask_vector"].data[3], average.average["image_decoder.mask_vector"][3] = 1.0, -0.0
        before = bits(dict(params)), bits(optimizer.state()), bits(average.state())
        norm, made = optimizer.step(0.1, torch.tensor(not bad or poison != "loss"))
        average.update(params.items(), made)
        assert bool(made) != bad and (bool(torch.isfinite(norm)) or poison != "loss")
    for now, then in zip((dict(params), optimizer.state(), average.state()), before, strict=True):
        assert all(torch.equal(now_bits, then[name]) for name, now_bits in bits(now).items())
    assert all(p.grad is None for p in params.values())


def test_spikes_are_skipped_once_the_usual_norm_is_known():
    """A weight whose gradient is its norm, against a mean kept in NumPy; the norms of skipped updates do not count."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = optim.Adafactor({"weight": weight}.items(), OptimConfig(skip_spikes=3.0, weight_decay=0.0))
    rng, usual, count, skipped = np.random.default_rng(), 0.0, 0, 0
    for step in range(300):
        size = float(rng.uniform(0.5, 1.5)) * (100 if step in (20, 120, 121, 200) else 1)
        weight.grad = torch.tensor(size)
        before = bits({"weight": weight} | optimizer.state())
        _, made = optimizer.step(0.01)
        assert bool(made) == (count < 100 or size <= 3 * usual)
        if made:
            count += 1
            usual += (size - usual) * max(1 / count, 0.01)
        else:
            skipped += 1
            after = bits({"weight": weight} | optimizer.state())
            assert all(torch.equal(after[name], before[name]) for name in before)
    assert skipped == 3 and optimizer.state()["usual_norm"].item() == pytest.approx(usual, rel=1e-4)
    assert "usual_norm" not in optim.Adafactor({"weight": weight}.items(), OptimConfig()).state()


def test_spikes_may_be_skipped_from_a_later_step_on():
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = optim.Adafactor({"weight": weight}.items(), OptimConfig(skip_spikes=3.0))
    optimizer.count.fill_(5000)
    for size, expected in ((2.0, True), (2.0, True), (50.0, False)):
        weight.grad = torch.tensor(size)
        assert bool(optimizer.step(0.01)[1]) == expected


def test_a_parameter_without_gradient_decays_and_a_frozen_one_rests():
    used, idle = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4, 4))
    frozen = torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
    before = idle.detach().clone(), frozen.clone()
    optimizer = optim.Adafactor({"used": used, "idle": idle, "frozen": frozen}.items(), OptimConfig(weight_decay=0.1))
    used.grad = torch.randn(4, 4)
    optimizer.step(0.5)
    torch.testing.assert_close(idle.detach(), before[0] * (1 - 0.05))
    assert torch.equal(frozen, before[1]) and "moment/frozen" not in optimizer.state()


def test_learning_rate():
    config = OptimConfig(learning_rate=0.3, lr_warmup_steps=10, num_steps=110)
    warm = [optim.learning_rate(step, config) for step in range(10)]
    np.testing.assert_allclose(warm, [0.03 * (step + 1) for step in range(10)])
    for step in (10, 35, 60, 85, 110):
        expected = 0.3 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert optim.learning_rate(step, config) == pytest.approx(expected, abs=1e-12)
    assert optim.learning_rate(10, config) == 0.3 and optim.learning_rate(110, config) == pytest.approx(0)
    assert 0 < optim.learning_rate(109, config) < 1e-3 * 0.3
    for steps in (OptimConfig(lr_warmup_steps=0, num_steps=1), OptimConfig(lr_warmup_steps=4, num_steps=4)):
        assert all(math.isfinite(optim.learning_rate(step, steps)) for step in range(5))


def test_global_norm():
    tensors = [torch.randn(3, 5), torch.randn(7), torch.randn(())]
    expected = np.linalg.norm(np.concatenate([x.double().numpy().ravel() for x in tensors]))
    assert optim.global_norm(tensors).item() == pytest.approx(expected, rel=1e-6)


def test_average():
    decay = 0.5 + 0.4 * float(torch.rand(()))
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema = optim.Ema(model.named_parameters(), decay)
    average = model.weight.detach().double().numpy().copy()
    for finite in (True, True, False, True, True):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(model.named_parameters(), torch.tensor(finite))
        if finite:
            average = decay * average + (1 - decay) * model.weight.detach().double().numpy()
    np.testing.assert_allclose(ema.average["weight"].numpy(), average, rtol=1e-5, atol=1e-6)
    assert set(ema.average) == {"weight"}
