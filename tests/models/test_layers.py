"""Layers against torch's own attention, NumPy and loops."""

import numpy as np
import pytest
import torch
from torch import nn

from itit.models import layers
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


def test_attention_equals_torchs_own():
    own, reference = small.stir(layers.Attention(24, 3, 0.0)), nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(own.qkv.weight)
        reference.in_proj_bias.copy_(own.qkv.bias)
        reference.out_proj.weight.copy_(own.out.weight)
        reference.out_proj.bias.copy_(own.out.bias)
    x, mask = torch.randn(2, 7, 24), torch.rand(7, 7) < 0.6
    mask.fill_diagonal_(True)
    torch.testing.assert_close(own(x), reference(x, x, x, need_weights=False)[0], atol=1e-5, rtol=1e-4)
    expected = reference(x, x, x, attn_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(own(x, mask), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_numpy(norm):
    block = small.stir(layers.Block(16, 2, 3.0, 0.1, norm)).eval()
    w = {f"block.{name}": value for name, value in small.weights(block).items()}
    x, mask = torch.randn(2, 5, 16), torch.rand(2, 1, 5, 5) < 0.7
    mask |= torch.eye(5, dtype=torch.bool)
    for sample, allowed, y in zip(x.numpy(), mask[:, 0].numpy(), block(x, mask).detach().numpy(), strict=True):
        expected = small.block(w, "block", sample.astype(np.float64), 2, allowed, norm)
        np.testing.assert_allclose(y, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_of_another_norm_and_mlp(norm):
    """SwiGLU and RMS norms, against torch's own and by hand."""
    block = small.stir(layers.Block(16, 2, 3.0, 0.0, norm, layers.RMSNorm, layers.GatedMlp))
    norms = [nn.RMSNorm(16, layers.NORM_EPS) for _ in "ab"]
    for theirs, ours in zip(norms, (block.attention_norm, block.mlp_norm), strict=True):
        theirs.load_state_dict(ours.state_dict())
    w = block.mlp.state_dict()
    assert {name: tuple(weight.shape) for name, weight in w.items()} == {
        "gate.weight": (48, 16), "up.weight": (48, 16), "down.weight": (16, 48)}  # fmt: skip

    def mlp(x):
        return (nn.functional.silu(x @ w["gate.weight"].T) * (x @ w["up.weight"].T)) @ w["down.weight"].T

    x = torch.randn(2, 5, 16)
    if norm == "pre":
        middle = x + block.attention(norms[0](x))
        expected = middle + mlp(norms[1](middle))
    else:
        middle = norms[0](x + block.attention(x))
        expected = norms[1](middle + mlp(middle))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only_and_on_each_branch():
    x = torch.randn(2, 6, 16)
    for module in (layers.Attention(16, 2, 0.5), layers.Mlp(16, 32, 0.5), layers.GatedMlp(16, 32, 0.5)):
        module.eval()
        assert torch.equal(module(x), module(x))
        module.train()
        assert (module(x) == 0).float().mean() > 0.25  # the output itself is dropped
        assert not torch.equal(module(x), module(x))
    attention = layers.Attention(16, 2, 0.9).train()
    attention.out.weight.data.zero_()
    attention.out.bias.data.fill_(1.0)
    y = attention(x)
    torch.testing.assert_close(y, 10.0 * (y != 0))


def test_attention_probabilities_are_dropped_in_training():
    attention = layers.Attention(16, 2, 0.9).train()
    attention.out = nn.Identity()
    x = torch.randn(1, 1, 16).expand(64, 1, 16)  # one key, probability 1: dropped or tenfold
    heads = attention(x).view(64, 2, 8)
    zero = (heads == 0).all(-1).float().mean()
    assert zero > 0.6  # without, 0.9 ** 8


def test_initial_weights():
    linear, table = layers.Linear(300, 500), nn.Embedding(2000, 64)
    nn.Sequential(linear, table).apply(layers.init_weights)
    bound = (6 / 800) ** 0.5  # Glorot's: uniform with variance 2 / (in + out)
    assert linear.weight.abs().max() <= bound and linear.weight.abs().max() > 0.99 * bound
    assert abs(linear.weight.var().item() * 400 - 1) < 0.02
    assert not linear.bias.any()
    vector = layers.learned(2000, 64)
    for weight in (table.weight, vector):
        assert abs(weight.std().item() / 0.02 - 1) < 0.02 and abs(weight.mean().item()) < 2e-4


def test_bf16_products_with_float32_weights():
    model = nn.Sequential(layers.Block(64, 4, 4.0, 0.0), layers.Block(64, 4, 4.0, 0.0, "post"))
    x = torch.randn(2, 10, 64)
    exact = model(x)
    layers.set_compute_dtype(model, torch.bfloat16)
    seen = []
    model[0].mlp.up.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    rough = model(x)
    assert seen == [torch.bfloat16] and rough.dtype == torch.float32
    difference = (rough - exact).abs().max()
    assert 0 < difference < 0.1 * exact.abs().max()
    rough.square().sum().backward()
    for parameter in model.parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def test_tied_head_adds_its_bias_and_sends_gradient_to_the_table():
    head, table = small.stir(layers.TiedHead(11)), torch.randn(11, 6, requires_grad=True)
    x = torch.randn(2, 3, 6)
    logits = head(x, table)
    torch.testing.assert_close(logits, torch.einsum("btd,vd->btv", x, table) + head.bias)
    grad = torch.randn(2, 3, 11)
    logits.backward(grad)
    torch.testing.assert_close(table.grad, torch.einsum("btv,btd->vd", grad, x))
