"""The image decoder against a NumPy decoder, sample by sample."""

import numpy as np
import pytest
import torch

from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

NO_TEXT = {"image_decoder_sees_text": False, "overwrite_kept_masked": False}


def reference(w, config, image, other, kept, mask, text_mask):
    """One sample -> hidden [N, D]; written from the specification."""
    x = np.tile(w["mask_vector"], (config.num_image_tokens, 1))
    for features, position in zip(image, kept, strict=True):
        if not (config.overwrite_kept_masked and mask[position]):
            x[position] = small.linear(w, "embed", features)
    visible = np.ones(len(x), bool)
    if config.image_decoder_sees_text:
        x = np.concatenate([x, small.linear(w, "embed", other)])
        visible = np.concatenate([visible, text_mask if config.text_key_mask else np.ones_like(text_mask)])
    x = x + w["positions"]
    for i in range(config.image_decoder_depth):
        x = small.block(w, f"blocks.{i}", x, config.num_heads, np.repeat(visible[None], len(x), 0))
    return small.layer_norm(w, "norm", x)[: config.num_image_tokens]


def random_inputs(config, batch=2):
    m, num_kept = config.model, 8
    noise = torch.rand(batch, m.num_image_tokens).argsort(1)
    kept = noise[:, :num_kept].sort(1).values
    mask = torch.ones(batch, m.num_image_tokens, dtype=torch.bool).scatter(1, noise[:, : num_kept // 2], False)
    slots = m.num_text_tokens + m.class_token
    text_mask = torch.arange(slots) < torch.randint(1, slots + 1, (batch, 1))
    return torch.randn(batch, num_kept, m.embed_dim), torch.randn(batch, slots, m.embed_dim), kept, mask, text_mask


@pytest.mark.parametrize(
    "flags", [{}, {"class_token": True}, {"text_key_mask": True}, {"overwrite_kept_masked": False}, NO_TEXT]
)
def test_image_decoder_equals_numpy(flags):
    config, decoder = small.small(**flags), small.small_model(**flags).image_decoder
    inputs = random_inputs(config)
    table = torch.randn(config.model.codebook_size, config.model.embed_dim)
    hidden = decoder(*inputs)
    at = torch.stack([torch.randperm(config.model.num_image_tokens)[:5] for _ in range(2)])
    logits, some = (decoder.logits(decoder.features(hidden, where), table) for where in (None, at))
    w = small.weights(decoder)
    for b in range(2):
        arrays = [x[b].double().numpy() if x.is_floating_point() else x[b].numpy() for x in inputs]
        expected = reference(w, config.model, *arrays)
        np.testing.assert_allclose(hidden[b].detach().numpy(), expected, atol=5e-5, rtol=1e-4)
        expected = small.layer_norm(w, "head_norm", small.gelu(small.linear(w, "head_in", expected)))
        expected = expected @ table.double().numpy().T + w["head.bias"]
        np.testing.assert_allclose(logits[b].detach().numpy(), expected, atol=2e-4, rtol=1e-3)
        np.testing.assert_allclose(some[b].detach().numpy(), expected[at[b].numpy()], atol=2e-4, rtol=1e-3)


def test_features_of_kept_masked_slots_are_overwritten():
    config, decoder = small.small(), small.small_model().image_decoder
    image, other, kept, mask, text_mask = random_inputs(config)
    hidden = decoder(image, other, kept, mask, text_mask)
    kept_masked = mask.gather(1, kept)[..., None]
    assert kept_masked.any() and not kept_masked.all()
    changed = torch.where(kept_masked, torch.randn_like(image), image)
    assert torch.equal(hidden, decoder(changed, other, kept, mask, text_mask))
    assert not torch.equal(hidden, decoder(torch.randn_like(image), other, kept, mask, text_mask))


def test_gradient_into_the_tied_table_stops_where_asked():
    for detached in (False, True):
        decoder = small.small_model(detach_tied_table=detached).image_decoder
        table = torch.randn(40, 32, requires_grad=True)
        decoder.logits(decoder.features(torch.randn(1, 16, 32)), table).square().sum().backward()
        assert (table.grad is None) == detached
        assert decoder.head_in.weight.grad.any()
