"""The encoder against a NumPy encoder, sample by sample."""

import numpy as np
import pytest
import torch

from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)


def reference(w, config, embeds, kept, features, text_mask):
    """One sample: [K, D], [K], [L, F], [L] -> [K + S, D]; written from the specification."""
    image = small.layer_norm(w, "image_norm", embeds + w["image_positions"][kept])
    words = np.array([f if there else np.zeros_like(f) for f, there in zip(features, text_mask, strict=True)])
    text = small.layer_norm(w, "text_norm", words @ w["text_in.weight"].T)
    if config.text_positions:
        text = text + w["text_positions"]
    visible = np.concatenate([np.ones(len(kept), bool), text_mask])
    if config.class_token:
        text = np.concatenate([w["class_token"][None], text])
        visible = np.insert(visible, len(kept), True)
    x = np.concatenate([image, text])
    if not config.text_key_mask:
        visible[:] = True
    allowed = np.repeat(visible[None], len(x), 0)
    for i in range(config.depth):
        x = small.block(w, f"blocks.{i}", x, config.num_heads, allowed)
    return small.layer_norm(w, "norm", x)


@pytest.mark.parametrize("flags", [{}, {"class_token": True, "text_key_mask": True}, {"text_positions": False}])
def test_encoder_equals_numpy(flags):
    config = small.small(**flags)
    encoder, m = small.small_model(**flags).encoder, config.model
    batch, num_kept = 2, 9
    kept = torch.stack([torch.randperm(m.num_image_tokens)[:num_kept].sort().values for _ in range(batch)])
    embeds = torch.randn(batch, num_kept, m.embed_dim)
    text = small.random_text(batch, config)
    image, other = encoder(embeds, kept, text.features, text.mask)
    assert image.shape == (batch, num_kept, m.embed_dim)
    assert other.shape == (batch, m.num_text_tokens + m.class_token, m.embed_dim)
    w = small.weights(encoder)
    for b in range(batch):
        inputs = embeds[b].double().numpy(), kept[b].numpy(), text.features[b].double().numpy(), text.mask[b].numpy()
        found = torch.cat([image[b], other[b]]).detach().numpy()
        np.testing.assert_allclose(found, reference(w, m, *inputs), atol=5e-5, rtol=1e-4)


def test_features_of_pad_slots_are_never_read():
    config = small.small()
    encoder, text = small.small_model().encoder, small.random_text(3, config)
    kept = torch.arange(config.model.num_image_tokens).expand(3, -1)
    embeds = torch.randn(3, config.model.num_image_tokens, config.model.embed_dim)
    other = torch.where(text.mask[..., None], text.features, torch.randn_like(text.features))
    for a, b in zip(encoder(embeds, kept, *text), encoder(embeds, kept, other, text.mask), strict=True):
        assert torch.equal(a, b)


def test_embedding_dropout_is_on_in_training():
    encoder = small.small_model(depth=1).encoder.train()
    encoder.blocks = torch.nn.ModuleList()
    encoder.norm = torch.nn.Identity()
    config = small.small()
    image, _ = encoder(torch.randn(8, 16, 32), torch.arange(16).expand(8, -1), *small.random_text(8, config))
    assert 0.05 < (image == 0).float().mean() < 0.15
