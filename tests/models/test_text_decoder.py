"""The text decoder against a NumPy decoder, and its cached steps against teacher forcing."""

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from itit.models.text_decoder import prefix_causal_mask
from tests.helpers import small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)

NORMS = ("pre", "post")


def allowed_pairs(num_memory, length, memory_mask):
    """bool [M + L, M + L]: memory sees memory, text also the text up to itself; nobody sees hidden memory."""
    allowed = np.zeros((num_memory + length,) * 2, bool)
    for query in range(num_memory + length):
        for key in range(num_memory + length):
            if key < num_memory:
                allowed[query, key] = memory_mask[key]
            else:
                allowed[query, key] = query >= num_memory and key - num_memory <= query - num_memory
    return allowed


def reference(w, config, ids, memory, memory_mask):
    """One sample: [L], [M, D], [M] -> logits [L, V]."""
    x = small.layer_norm(w, "text_norm", w["token_embed.weight"][ids] + w["positions"][: len(ids)])
    if len(memory):
        x = np.concatenate([small.layer_norm(w, "memory_norm", small.linear(w, "memory_in", memory)), x])
    allowed = allowed_pairs(len(memory), len(ids), memory_mask)
    for i in range(config.text_decoder_depth):
        x = small.block(w, f"blocks.{i}", x, config.text_decoder_num_heads, allowed, config.text_decoder_norm)
    if config.text_decoder_norm == "pre":
        x = small.layer_norm(w, "norm", x)
    return x[len(memory) :] @ w["token_embed.weight"].T + w["head.bias"]


def random_inputs(config, batch=3, slots=6):
    memory_mask = torch.rand(batch, slots) < 0.6
    memory_mask[torch.arange(batch), torch.randint(slots, (batch,))] = True
    ids = torch.randint(config.vocab_size, (batch, config.num_text_tokens))
    return ids, torch.randn(batch, slots, config.embed_dim), memory_mask


def test_prefix_causal_mask():
    for num_memory, length in ((0, 4), (3, 1), (4, 5)):
        found = prefix_causal_mask(num_memory, length, "cpu").numpy()
        assert np.array_equal(found, allowed_pairs(num_memory, length, [True] * num_memory))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("with_memory", [True, False])
def test_text_decoder_equals_numpy(norm, with_memory):
    decoder = small.small_model(text_decoder_norm=norm).text_decoder
    ids, memory, mask = random_inputs(decoder.config)
    logits = decoder(ids, memory, mask) if with_memory else decoder(ids)
    w = small.weights(decoder)
    for b in range(len(ids)):
        seen = (memory[b].double().numpy(), mask[b].numpy()) if with_memory else ((), ())
        expected = reference(w, decoder.config, ids[b].numpy(), *seen)
        np.testing.assert_allclose(logits[b].detach().numpy(), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_cached_steps_equal_teacher_forcing(norm, way):
    decoder = small.small_model(text_decoder_norm=norm).text_decoder
    ids, memory, mask = random_inputs(decoder.config)
    expected = decoder(ids, memory, mask)
    cache = decoder.start(memory, mask)
    shapes = [x.shape for x in pytree.tree_leaves(cache) if isinstance(x, torch.Tensor)]
    for position in range(ids.shape[1]):
        logits = decoder.step(ids[:, position], torch.tensor([position]), cache)
        torch.testing.assert_close(logits, expected[:, position], atol=1e-4, rtol=1e-4)
    assert shapes == [x.shape for x in pytree.tree_leaves(cache) if isinstance(x, torch.Tensor)]  # nothing grows


def test_reordered_cache_goes_on_as_the_other_rows(way):
    """Twice, with two beams a sample: each beam goes on from either one of its own sample."""
    decoder = small.small_model().text_decoder
    ids, memory, mask = random_inputs(decoder.config)
    samples = torch.arange(len(ids)).repeat_interleave(2)
    cache = decoder.start(memory, mask).repeat(2)
    texts = torch.cat([ids, ids.roll(1, 0)])[: 2 * len(ids)]
    for position in range(3):
        decoder.step(texts[:, position], torch.tensor([position]), cache)
    for position in (3, 4):
        rows = 2 * samples + torch.randint(2, samples.shape)
        cache, texts = cache.reorder(rows), texts[rows]
        logits = decoder.step(texts[:, position], torch.tensor([position]), cache)
        expected = decoder(texts, memory[samples], mask[samples])
        torch.testing.assert_close(logits, expected[:, position], atol=1e-4, rtol=1e-4)


def test_hidden_memory_is_never_read(way):
    decoder = small.small_model().text_decoder
    ids, memory, mask = random_inputs(decoder.config)
    changed = torch.where(mask[..., None], memory, torch.randn_like(memory))
    assert torch.equal(decoder(ids, memory, mask), decoder(ids, changed, mask))
    cache, other = decoder.start(memory, mask), decoder.start(changed, mask)
    zero = torch.tensor([0])
    assert torch.equal(decoder.step(ids[:, 0], zero, cache), decoder.step(ids[:, 0], zero, other))


def test_gradient_reaches_the_table_by_input_and_by_output():
    decoder = small.small_model().text_decoder
    ids, memory, mask = random_inputs(decoder.config)
    decoder(ids, memory, mask).square().sum().backward()
    together = decoder.token_embed.weight.grad.clone()
    parts = []
    for side in ("in", "out"):
        decoder.zero_grad()
        copy = decoder.token_embed.weight.detach().clone().requires_grad_()
        if side == "in":  # the table is a constant at the output
            decoder.head.forward = lambda x, table: x @ table.detach().T + decoder.head.bias
            decoder(ids, memory, mask).square().sum().backward()
            parts.append(decoder.token_embed.weight.grad.clone())
        else:
            decoder.head.forward = lambda x, _, copy=copy: x @ copy.T + decoder.head.bias
            decoder(ids, memory, mask).square().sum().backward()
            parts.append(copy.grad)
        assert parts[-1].any()
    torch.testing.assert_close(together, parts[0] + parts[1], atol=1e-3, rtol=1e-3)
