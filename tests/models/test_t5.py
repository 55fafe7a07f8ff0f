"""T5 encoder against transformers' T5EncoderModel, with the same random weights."""

import pytest
import torch

from itit.config import T5Config
from itit.models.t5 import T5Encoder, distance_buckets

transformers = pytest.importorskip("transformers")

CONFIGS = [
    dict(dim=32, head_dim=8, ff_dim=48, num_layers=3, num_heads=4, vocab_size=50),
    dict(dim=24, head_dim=16, ff_dim=40, num_layers=1, num_heads=2, vocab_size=70, num_buckets=16, max_distance=20),
    dict(dim=64, head_dim=16, ff_dim=128, num_layers=2, num_heads=4, vocab_size=99),
]

THEIR_NAMES = {
    "attention_norm": "layer.0.layer_norm",
    "attention.query": "layer.0.SelfAttention.q",
    "attention.key": "layer.0.SelfAttention.k",
    "attention.value": "layer.0.SelfAttention.v",
    "attention.out": "layer.0.SelfAttention.o",
    "mlp_norm": "layer.1.layer_norm",
    "mlp.gate": "layer.1.DenseReluDense.wi_0",
    "mlp.up": "layer.1.DenseReluDense.wi_1",
    "mlp.down": "layer.1.DenseReluDense.wo",
}


def their_name(name):
    if name == "token_embed.weight":
        return "shared.weight"
    if name == "final_norm.weight":
        return "encoder.final_layer_norm.weight"
    if name == "position_bias.weight":
        return "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    _, index, rest = name.split(".", 2)
    return f"encoder.block.{index}.{THEIR_NAMES[rest.removesuffix('.weight')]}.weight"


def pair(sizes):
    """Our encoder and theirs with equal weights; norms and biases are random, too, so that each one matters."""
    ours = T5Encoder(T5Config(**sizes))
    ours.init_weights(seed=1)
    for name, parameter in ours.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    c = ours.config
    theirs = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=c.vocab_size, d_model=c.dim, d_kv=c.head_dim, d_ff=c.ff_dim, num_layers=c.num_layers,
            num_heads=c.num_heads, relative_attention_num_buckets=c.num_buckets,
            relative_attention_max_distance=c.max_distance, feed_forward_proj="gated-gelu", dropout_rate=0.0,
        )
    ).eval()  # fmt: skip
    weights = {their_name(name): value for name, value in ours.state_dict().items()}
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"]
    theirs.load_state_dict(weights)
    return ours, theirs


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


def padded_batch(vocab_size, length):
    ids = torch.randint(3, vocab_size, (4, length))
    lengths = torch.tensor([length, 1, length // 2, length - 1])
    mask = torch.arange(length) < lengths[:, None]
    return ids.masked_fill(~mask, 0), mask


@pytest.mark.parametrize("sizes", CONFIGS)
@pytest.mark.parametrize("length", [7, 64, 150])
def test_features_equal_transformers(sizes, length):
    ours, theirs = pair(sizes)
    ids, mask = padded_batch(sizes["vocab_size"], length)
    want = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative(ours(ids, mask=mask)[mask], want[mask]) < 1e-5
    unmasked = theirs(input_ids=ids).last_hidden_state
    assert relative(ours(ids), unmasked) < 1e-5


@pytest.mark.parametrize("sizes", CONFIGS)
def test_gradient_to_soft_embeddings_equals_transformers(sizes):
    ours, theirs = pair(sizes)
    _, mask = padded_batch(sizes["vocab_size"], 12)
    soft = torch.randn(4, 12, sizes["vocab_size"]).mul(2).softmax(-1)
    direction = torch.randn(4, 12, sizes["dim"]) * mask[..., None]
    embeds = (soft @ ours.token_embed.weight).requires_grad_()
    want = torch.autograd.grad(
        (theirs(inputs_embeds=embeds, attention_mask=mask.long()).last_hidden_state * direction).sum(), embeds
    )[0]
    got = torch.autograd.grad((ours(embeds=embeds, mask=mask) * direction).sum(), embeds)[0]
    assert relative(got, want) < 1e-5
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in ours.parameters())


def test_embeddings_of_ids_equal_ids():
    ours, _ = pair(CONFIGS[0])
    ids, mask = padded_batch(50, 9)
    assert torch.equal(ours(ids, mask=mask), ours(embeds=ours.token_embed(ids), mask=mask))


def test_padding_leaves_earlier_features_unchanged():
    ours, _ = pair(CONFIGS[2])
    ids = torch.randint(3, 99, (2, 10))
    padded = torch.cat([ids, torch.zeros(2, 22, dtype=torch.long)], 1)
    torch.testing.assert_close(ours(padded, mask=padded != 0)[:, :10], ours(ids), rtol=1e-5, atol=1e-5)


def test_a_row_without_real_tokens_is_finite():
    ours, _ = pair(CONFIGS[0])
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert ours(ids, mask=ids != 0).isfinite().all()


def test_each_block_is_recomputed_in_the_backward_pass():
    ours, _ = pair(CONFIGS[0])
    calls = []
    ours.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    embeds = torch.randn(1, 6, 32, requires_grad=True)
    ours(embeds=embeds).sum().backward()
    assert len(calls) == 2
    calls.clear()
    ours(embeds=embeds.detach())
    assert len(calls) == 1


def test_initial_weights_follow_the_seed_and_t5s_law():
    sizes = dict(dim=256, head_dim=32, ff_dim=320, num_layers=1, num_heads=6, vocab_size=500)
    first, second, other = (T5Encoder(T5Config(**sizes)) for _ in range(3))
    first.init_weights(3)
    torch.rand(5)
    second.init_weights(3)
    other.init_weights(4)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        assert "norm" in name or not torch.equal(value, other.state_dict()[name])
    block, want = first.blocks[0], {}
    want[first.token_embed] = want[first.position_bias] = 1.0
    want[block.attention.query] = (256 * 32) ** -0.5
    want[block.attention.key] = want[block.attention.value] = 256**-0.5
    want[block.attention.out] = (6 * 32) ** -0.5
    want[block.mlp.gate] = want[block.mlp.up] = 256**-0.5
    want[block.mlp.down] = 320**-0.5
    for module, std in want.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.3 if module is first.position_bias else 0.03)


@pytest.mark.parametrize("num_buckets, max_distance", [(16, 128), (8, 20), (12, 48), (10, 160)])
def test_buckets_open_at_exact_distances(num_buckets, max_distance):
    """Bucket exact + k opens where (distance / exact) ** rest reaches (max / exact) ** k, in whole numbers."""
    exact = num_buckets // 2
    rest = num_buckets - exact
    for distance, bucket in enumerate(distance_buckets(num_buckets, max_distance)):
        opened = [k for k in range(rest) if distance**rest * exact**k >= max_distance**k * exact**rest]
        assert bucket == (exact + max(opened) if distance >= exact else distance)
