"""tools.convert_t5: what comes out computes what transformers computes; what is no T5 v1.1 is refused in one line."""

import hashlib
import json
import random

import pytest
import torch

from itit.config import T5Config
from itit.data.text import Detokenizer
from itit.models import t5 as t5_lib
from itit.presets import T5_PRESETS
from itit.training.taken import settle
from tests.helpers import foreign_weights, small
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import convert_t5
from tools.train_sentencepiece import train

transformers = pytest.importorskip("transformers")

SIZES = [
    dict(d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, vocab_size=60),
    dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, vocab_size=99),  # nano
    dict(d_model=48, d_kv=16, d_ff=40, num_layers=1, num_heads=2, vocab_size=70, relative_attention_num_buckets=16,
         relative_attention_max_distance=20),
]  # fmt: skip


def make(cls="T5EncoderModel", **sizes):
    """A network of transformers whose every weight is random and matters."""
    config = transformers.T5Config(feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=False, **sizes)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.rand_like(p) + 0.5 if "norm" in name else torch.randn_like(p) * p.shape[-1] ** -0.5)
        model.shared.weight.normal_()
    return model


def publish(model, folder, kind="safetensors", num_shards=1, **options):
    """Writes the network as others have it, with a vocabulary. Their own save_pretrained where it does the same."""
    folder.mkdir()
    if kind == "safetensors":
        size = 10 * 2**30 if num_shards == 1 else sum(p.numel() * 4 for p in model.parameters()) // num_shards
        model.save_pretrained(folder, max_shard_size=size)
    else:
        model.config.save_pretrained(folder)
        foreign_weights.write(folder, model.state_dict(), kind, num_shards, **options)
    (folder / "spiece.model").write_bytes(train(["a small red circle", "a large blue cross"] * 5, 40))
    return str(folder)


def relative(got, want):
    return ((got - want).abs().max() / want.abs().max()).item()


def padded_batch(vocab_size, length):
    lengths = torch.tensor([length, 1, length // 2, length - 1])
    mask = torch.arange(length) < lengths[:, None]
    return torch.randint(3, vocab_size, (4, length)).masked_fill(~mask, 0), mask


def same_features(ours, theirs, length=40):
    ids, mask = padded_batch(theirs.config.vocab_size, length)
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative(ours(ids, mask=mask)[mask], want[mask]) < 1e-4


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("length", [7, 150])
def test_features_equal_transformers(tmp_path, sizes, length):
    theirs = make(**sizes)
    convert_t5.convert(publish(theirs, tmp_path / "theirs"), str(tmp_path / "ours"), "fp32")
    same_features(t5_lib.load(str(tmp_path / "ours")), theirs, length)


LAYOUTS = [("safetensors", 3, {}), ("bin", 1, {}), ("bin", 3, {}), ("bin", 1, {"legacy": True})]


@pytest.mark.parametrize("kind,num_shards,options", LAYOUTS)
def test_every_layout_of_files_gives_the_same(tmp_path, kind, num_shards, options):
    theirs = make(**SIZES[0])
    folder = publish(theirs, tmp_path / "theirs", kind, num_shards, **options)
    assert len(list((tmp_path / "theirs").glob("*.index.json"))) == (num_shards > 1)
    convert_t5.convert(folder, str(tmp_path / "ours"), "fp32")
    same_features(t5_lib.load(str(tmp_path / "ours")), theirs)


def test_the_gradient_through_soft_ids_equals_that_through_inputs_embeds(tmp_path):
    theirs = make(**SIZES[1])
    convert_t5.convert(publish(theirs, tmp_path / "theirs"), str(tmp_path / "ours"), "fp32")
    ours = t5_lib.load(str(tmp_path / "ours"))
    _, mask = padded_batch(99, 12)
    direction = torch.randn(4, 12, 64) * mask[..., None]
    scores, found = torch.randn(4, 12, 99) * 2, []
    for run in (lambda e: ours(embeds=e, mask=mask),
                lambda e: theirs(inputs_embeds=e, attention_mask=mask.long()).last_hidden_state):  # fmt: skip
        soft = scores.softmax(-1).requires_grad_()
        table = (ours.token_embed if not found else theirs.shared).weight
        found.append(torch.autograd.grad((run(soft @ table) * direction).sum(), soft)[0])
    assert found[1].abs().max() > 0 and relative(*found) < 1e-4
    assert not any(p.requires_grad for p in ours.parameters())


def test_decoders_are_left_out_and_their_shards_may_be_absent(tmp_path):
    whole = make("T5ForConditionalGeneration", **SIZES[0] | {"num_decoder_layers": 2})
    folder = publish(whole, tmp_path / "theirs", "bin", 1)
    convert_t5.convert(folder, str(tmp_path / "ours"), "fp32")
    same_features(t5_lib.load(str(tmp_path / "ours")), whole.encoder)
    index = {"weight_map": dict.fromkeys(whole.state_dict(), "pytorch_model.bin")}
    index["weight_map"] |= {n: "never_downloaded.bin" for n in index["weight_map"] if n.startswith("decoder.")}
    (tmp_path / "theirs" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert_t5.convert(folder, str(tmp_path / "again"), "fp32")
    same_features(t5_lib.load(str(tmp_path / "again")), whole.encoder)


def test_bf16_rounds_and_all_files_are_recorded(tmp_path):
    theirs = make(**SIZES[1])
    folder = publish(theirs, tmp_path / "theirs")
    config = convert_t5.convert(folder, str(tmp_path / "ours"), "bf16")
    assert config == T5Config(size="nano", vocab_size=99, **T5_PRESETS["nano"])
    ours = t5_lib.load(str(tmp_path / "ours"))
    table = ours.token_embed.weight
    assert table.dtype == torch.bfloat16 and torch.equal(table, theirs.shared.weight.bfloat16())
    record = json.loads((tmp_path / "ours" / "hashes.json").read_text())
    for entries, place in ((record["files"], "ours"), (record["source"], "theirs")):
        assert set(entries) == {"config.json", "model.safetensors", "spiece.model"}
        for name, entry in entries.items():
            data = (tmp_path / place / name).read_bytes()
            assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert Detokenizer(str(tmp_path / "ours" / "spiece.model")).num_pieces <= 40
    assert settle(small.small(t5_weights=str(tmp_path / "ours"), vocab_size=99)).t5.dim == 64


def refused(folder, tmp_path):
    with pytest.raises(ValueError) as error:
        convert_t5.convert(str(folder), str(tmp_path / "out"), "fp32")
    assert not (tmp_path / "out").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_t5_v1_0_is_refused(tmp_path):
    config = transformers.T5Config(**SIZES[0])  # ReLU and tied, as v1.0
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "old")
    said = refused(tmp_path / "old", tmp_path)
    assert "T5 v1.0 (ReLU, tied), not v1.1" in said
    assert "encoder.block.0.layer.1.DenseReluDense.wi.weight" in said
    assert "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in said and "more" in said


def test_other_networks_are_refused(tmp_path):
    bert = transformers.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                                   vocab_size=30)  # fmt: skip
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    said = refused(tmp_path / "bert", tmp_path)
    assert "not a T5 v1.1 encoder: holds embeddings.LayerNorm.bias, " in said and "lacks shared.weight" not in said
    assert "lacks encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in said
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty", tmp_path)
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "neither model.safetensors nor pytorch_model.bin" in refused(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize("key,value,part", [
    ("feed_forward_proj", "gated-silu", "feed_forward_proj='gated-silu': must be 'gated-gelu'"),
    ("feed_forward_proj", None, "feed_forward_proj=None"),
    ("layer_norm_epsilon", 1e-5, "layer_norm_epsilon=1e-05"),
    ("d_ff", 56, r"wi_0.weight is (48, 32), config.json says (56, 32)"),
    ("d_kv", "8", "d_kv='8': must be a whole number"),
    ("num_layers", 4, "lacks encoder.block.3.layer.0.layer_norm.weight"),
    ("num_layers", 2, "holds encoder.block.2.layer.0.SelfAttention.k.weight"),
    ("vocab_size", 20, "spiece.model: "),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(tmp_path, key, value, part):
    folder = publish(make(**SIZES[0]), tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert part in refused(folder, tmp_path)


def test_broken_weights_are_refused(tmp_path):
    theirs = make(**SIZES[0])
    name = random.choice([n for n, _ in theirs.named_parameters() if "embed_tokens" not in n])
    with torch.no_grad():
        theirs.get_parameter(name).view(-1)[-1] = random.choice([float("nan"), float("inf")])
    publish(theirs, tmp_path / "nan")
    assert "holds NaN or infinity" in refused(tmp_path / "nan", tmp_path)
    (tmp_path / "made").mkdir()
    convert_t5.convert(publish(make(**SIZES[0]), tmp_path / "fine"), str(tmp_path / "made" / "t5"), "fp32")
    for path in (tmp_path / "made" / "t5" / "model.safetensors", tmp_path / "made" / "t5" / "config.json"):
        data = path.read_bytes()
        place = random.randrange(len(data) // 2, len(data) - 2)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=f"{path.name}: damaged or replaced: its SHA-256"):
            t5_lib.load(str(tmp_path / "made" / "t5"))
        path.write_bytes(data[:place])
        with pytest.raises(ValueError, match=f"{path.name}: {place} bytes instead of the {len(data)} in hashes.json"):
            t5_lib.load(str(tmp_path / "made" / "t5"))
        path.write_bytes(data)
    t5_lib.load(str(tmp_path / "made" / "t5"))
