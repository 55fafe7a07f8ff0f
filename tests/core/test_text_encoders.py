"""The text encoders: every family keeps the promises of the protocol, and another one serves everywhere."""

import dataclasses
import types

import pytest
import torch
from torch import nn

from itit import ITIT, text_encoders
from itit.checkpoint import weights, weightsdir
from itit.noise import Noise
from itit.text_encoders import FAMILIES, Family
from itit.train_step import tasks, train_step
from tests.helpers import finished_run
from tests.helpers.small import random_texts, small
from tests.helpers.tiny import make_config, make_state, random_batch
from tools import export
from tools.convert import model_card


class Bag(nn.Module):
    """An encoder that is no T5: each word with the mean of all."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.dim)
        self.mix = nn.Linear(config.dim, config.dim)
        self.requires_grad_(False)

    def forward(self, ids=None, embeds=None, mask=None):
        x = self.token_embed(ids) if embeds is None else embeds.to(self.token_embed.weight.dtype)
        seen = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        x = x * seen[..., None]
        return self.mix(x + x.sum(1, keepdim=True) / seen.sum(1)[:, None, None])

    @torch.no_grad()
    def init_weights(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture(params=[*FAMILIES, "bag"])
def family(request, monkeypatch):
    """The name of each family, and of another that stands in the place of the first."""
    if request.param in FAMILIES:
        return request.param
    row = FAMILIES["t5"]._replace(title="Bag of words", network=f"{__name__}:Bag")
    monkeypatch.setitem(FAMILIES, "t5", row)
    return "t5"


def built(family, seed):
    config = small(t5_family=family)
    encoder = text_encoders.network(config.t5)(config.t5)
    encoder.init_weights(seed)
    return encoder, config


def test_every_family_keeps_its_promises(family, tmp_path):
    encoder, config = built(family, 3)
    ids = random_texts(4, config)
    mask, table = ids != text_encoders.PAD, encoder.token_embed.weight
    assert table.shape == (config.model.vocab_size, config.model.text_feature_dim)
    assert encoder.config == config.t5 and not any(p.requires_grad for p in encoder.parameters())
    features = encoder(ids=ids, mask=mask)
    assert features.shape == (*ids.shape, config.model.text_feature_dim) and torch.isfinite(features).all()
    embeds = table[ids].clone().requires_grad_()
    torch.testing.assert_close(encoder(embeds=embeds, mask=mask), features)
    encoder(embeds=embeds, mask=mask)[mask].square().sum().backward()
    assert (embeds.grad[mask] != 0).any() and (embeds.grad[~mask] == 0).all(), "what is masked is not seen"
    again, other = built(family, 3)[0], built(family, 4)[0]
    assert all(map(torch.equal, encoder.parameters(), again.parameters()))
    assert not torch.equal(encoder.token_embed.weight, other.token_embed.weight)
    weightsdir.save(str(tmp_path / "folder"), encoder.state_dict(), encoder.config)
    read = weights.load_text_encoder(str(tmp_path / "folder"))
    assert torch.equal(read(ids=ids, mask=mask), features) and read.config.family == config.t5.family


def test_a_model_with_it_trains_goes_out_and_comes_back(family, monkeypatch, tmp_path):
    config = make_config(t5_family=family)
    state = make_state(config, 0)
    metrics = train_step(state, random_batch(config, 0), [Noise(0, 0, "cpu")], 1e-3, config, tasks(config, 0))
    assert torch.isfinite(metrics["loss"])
    config, _ = finished_run.of_scenes(tmp_path)
    given = dict(workdir=config.train.workdir, output=str(tmp_path / "out"), ema=None, step=None, report="",
                 max_copied_gib=2.0, t5_weights="", vqgan="", vocabulary="", dtype="", about="", prompt="")  # fmt: skip
    monkeypatch.setattr(export.flags, "FLAGS", types.SimpleNamespace(**given))
    export.main([])
    assert f"{FAMILIES[family].title} encoder, " in (tmp_path / "out" / export.CARD).read_text()
    models = ITIT.from_run(config.train.workdir), ITIT.from_pretrained(str(tmp_path / "out"))
    drawn = [model.generate(["a small red circle"], progress=False)[0].tobytes() for model in models]
    assert drawn[0] == drawn[1]


def test_an_unknown_family_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="--t5_family='t6': choose one of t5"):
        small(t5_family="t6")
    encoder, config = built("t5", 0)
    weightsdir.save(str(tmp_path), encoder.state_dict(), dataclasses.replace(config.t5, family="clip"))
    with pytest.raises(ValueError, match=r"config.json: family=clip: must be one of t5$"):
        weights.load_text_encoder(str(tmp_path))


class Spelling:
    def __init__(self, path):
        self.path = path


class Reading:
    def __init__(self, path, length):
        self.length = length


def test_the_tokenizer_is_that_of_the_family(monkeypatch):
    row = Family("Own", "builtins:object", f"{__name__}:Spelling", f"{__name__}:Reading")
    monkeypatch.setitem(FAMILIES, "t5", row)
    config = small(vocabulary="words.txt")
    assert text_encoders.tokenizer(config).path == "words.txt"
    assert text_encoders.tokenizer(config, "moved.txt").path == "moved.txt"
    assert text_encoders.tokenizer(small()) is None
    assert text_encoders.reader(config).length == config.model.num_text_tokens
    card = model_card.part_rows(config, {"parts": {"t5": {"path": "t5", "sha256": "aa"}}})
    assert next(iter(card))[0].startswith("Own encoder")
