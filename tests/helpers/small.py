"""What the tests of the networks share: a very small config, and a transformer block in NumPy to compare with.

Shapes: B batch, T tokens, D width, H heads.
"""

import importlib
import math

import numpy as np
import pytest
import torch

from itit import ops
from itit.config import Config, replace
from itit.models import ITITModel, T5Encoder, Text, encode_text

SIZES = dict(
    preset="nano", embed_dim=32, depth=2, num_heads=4, image_decoder_depth=2, text_decoder_dim=24,
    text_decoder_depth=2, text_decoder_num_heads=3, num_image_tokens=16, num_text_tokens=8, codebook_size=40,
    vocab_size=48, bos_id=47, t5_size="nano", num_decode_steps=6, dropout=0.1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_seed():
    """New random inputs in every test of a module that imports this; pytest shows the seed of a failure."""
    print(f"torch.manual_seed({torch.seed()})")


def use_forms(monkeypatch, device="xla"):
    """The forms of another type of device (see itit/ops.py) are computed on the processor."""
    pytest.importorskip("torch_xla")
    importlib.import_module(ops.MODULES[device])
    for (operation, its), form in list(ops.FORMS.items()):
        if its == device:
            monkeypatch.setitem(ops.FORMS, (operation, "cpu"), form)


def small(**values):
    """A resolved Config of very small networks, with flags changed."""
    return replace(Config(), **SIZES | values).resolve()


def stir(module, scale=0.15):
    """Random numbers on every parameter: zeros and ones of an initialisation hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


def small_model(**values):
    """ITIT of `small`, stirred, in evaluation mode."""
    return stir(ITITModel(small(**values).model)).eval()


def small_t5(**values):
    config = small(**values).t5
    t5 = T5Encoder(config)
    t5.init_weights(seed=int(torch.randint(2**31, ())))
    return t5


def random_texts(batch, config):
    """int64 [B, L]: words, EOS, PAD; lengths drawn."""
    model = config.model
    ids = torch.randint(3, model.bos_id, (batch, model.num_text_tokens))
    for row in ids:
        end = int(torch.randint(1, model.num_text_tokens, ()))
        row[end], row[end + 1 :] = 1, 0
    return ids


def random_text(batch, config, t5=None):
    """Text of random sentences."""
    return encode_text(t5 or small_t5(), random_texts(batch, config))


def empty_text(config):
    """A made-up empty text: Text of one row, features only in slot 0."""
    features = torch.zeros(1, config.model.num_text_tokens, config.model.text_feature_dim)
    features[:, 0] = torch.randn(config.model.text_feature_dim)
    mask = torch.zeros(1, config.model.num_text_tokens, dtype=torch.bool)
    mask[:, 0] = True
    return Text(features, mask)


class Recorded:
    """A `noise(name, shape)` of fresh uniform numbers that gives a name the same ones again; `draws` keeps them."""

    def __init__(self):
        self.draws = {}

    def __call__(self, name, shape):
        if name not in self.draws:
            self.draws[name] = torch.rand(shape).clamp_(min=2.0**-25)
        assert self.draws[name].shape == tuple(shape), name
        return self.draws[name]


# ------------------------------------------------------------------------------------------ NumPy, float64


def weights(module):
    """Parameters by name as float64 arrays."""
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def layer_norm(w, name, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(w, name, x, num_heads, allowed):
    """One sample [T, D]; `allowed` bool [T, T]. Query by query and head by head."""
    tokens, dim = x.shape
    q, k, v = np.split(linear(w, f"{name}.qkv", x), 3, axis=1)
    size, out = dim // num_heads, np.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(tokens):
            scores = np.array([q[i, part] @ k[j, part] / math.sqrt(size) for j in range(tokens)])
            scores[~allowed[i]] = -np.inf
            if np.isfinite(scores).any():
                probs = np.exp(scores - scores.max())
                out[i, part] = probs / probs.sum() @ v[:, part]
    return linear(w, f"{name}.out", out)


def block(w, name, x, num_heads, allowed, norm="pre"):
    """One sample [T, D] through one transformer block without dropout."""

    def attend(y):
        return attention(w, f"{name}.attention", y, num_heads, allowed)

    def mlp(y):
        return linear(w, f"{name}.mlp.down", gelu(linear(w, f"{name}.mlp.up", y)))

    if norm == "pre":
        x = x + attend(layer_norm(w, f"{name}.attention_norm", x))
        return x + mlp(layer_norm(w, f"{name}.mlp_norm", x))
    x = layer_norm(w, f"{name}.attention_norm", x + attend(x))
    return layer_norm(w, f"{name}.mlp_norm", x + mlp(x))
