"""Pre-training of a small T5: it learns a few sentences by heart, goes on where it was killed, and ITIT takes it."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from itit import config as config_lib
from itit.backends.local import Local
from itit.checkpoint import store, weightsdir
from itit.config import Config, T5Config, TrainConfig
from itit.data import records
from itit.models import T5Encoder
from itit.training.state import make_text_encoder
from itit.training.taken import settle
from tests.helpers.common import shared_data
from tools import pretrain_t5
from tools.pretrain_t5 import Pretraining

SETTINGS = Pretraining(num_text_tokens=24, vocab_size=64, bos_id=60, batch_size=6, num_steps=12, lr_warmup_steps=2)


pytestmark = pytest.mark.usefixtures("kept_signals")


def write_texts(path, count, rng):
    """Shards of ready ids of random sentences."""
    with records.RecordWriter(str(path)) as writer:
        for number in range(count):
            words = rng.integers(3, 50, rng.integers(4, 24))
            ids = np.zeros(24, np.int64)
            ids[: len(words)], ids[len(words)] = words, 1
            writer.write(records.encode_example({"key": str(number), "text_ids": ids}))


def run_config(folder, **values):
    return TrainConfig(workdir=str(folder), backend="cpu", seed=5, sample_every=0, log_every=100, **values)


def test_it_overfits_a_few_sentences():
    """Encoder and decoder learn what is hidden in six sentences, which needs the words around it."""
    config, torch_rng = SETTINGS.config(0), np.random.default_rng()
    state = pretrain_t5.make_state(dataclasses.replace(config, train=TrainConfig(seed=1)), Local("cpu"))
    common = torch_rng.integers(3, 50, 2)  # the target begins alike everywhere: only the features tell the rest
    inputs, targets = torch.zeros(6, 10, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long)
    for row in range(6):
        words = torch_rng.permutation(np.arange(3, 50))[:8]
        inputs[row] = torch.tensor([*words[:5], 59, *common, 1, 0])
        targets[row] = torch.tensor([59, *words[6:], 1])
    first = pretrain_t5.update(state, inputs, targets, 3e-3, 60)
    for _ in range(150):
        last = pretrain_t5.update(state, inputs, targets, 3e-3, 60)
    assert first["loss"] > 2 and last["loss"] < 0.05 and last["accuracy"] == 1.0


def test_the_loss_is_the_mean_over_target_words_and_trains_every_weight():
    config = SETTINGS.config(0)
    model = pretrain_t5.Pretrained(config)
    inputs = torch.randint(3, 50, (3, 24))
    inputs[0, 10:], inputs[:, 9] = 0, 1
    targets = torch.tensor([[59, 7, 1, 0, 0], [59, 8, 9, 7, 1], [1, 0, 0, 0, 0]])
    logits = model(inputs, targets, 60)
    real = targets != 0
    expected = F.nll_loss(logits.log_softmax(-1)[real], targets[real])
    state = pretrain_t5.State(model, pretrain_t5.Adafactor(model.named_parameters(), config.optim))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    values = pretrain_t5.update(state, inputs, targets, 1e-2, 60)
    torch.testing.assert_close(values["loss"], expected.detach())
    for name, p in model.named_parameters():
        assert not torch.equal(p, before[name]), name
    # What stands behind a text's end has no part in anything.
    shorter = model(inputs[:1, :10], targets[:1], 60)
    torch.testing.assert_close(shorter, model(inputs[:1], targets[:1], 60))


def test_a_word_of_the_target_sees_no_later_one():
    model = pretrain_t5.Pretrained(SETTINGS.config(0))
    inputs = torch.randint(3, 50, (1, 24))
    targets = torch.tensor([[59, 7, 8, 9, 1]])
    other = torch.tensor([[59, 7, 8, 30, 31]])
    a, b = model(inputs, targets, 60), model(inputs, other, 60)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4], b[:, 4])


def test_killed_run_ends_with_the_same_weights_and_itit_takes_them(tmp_path):
    write_texts(tmp_path / "texts.tfrecord", 20, np.random.default_rng())
    settings, values = dataclasses.replace(SETTINGS, data=str(tmp_path / "texts.tfrecord")), {"seed": 5}
    assert pretrain_t5.train(settings, run_config(tmp_path / "whole"), values) == 0
    assert pretrain_t5.train(settings, run_config(tmp_path / "killed", stop_after_steps=5), values) == 0
    assert store.latest_step(str(tmp_path / "killed")) == 5
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert pretrain_t5.train(settings, run_config(tmp_path / "killed"), values) == 0
    ends = [weightsdir.load(str(tmp_path / name), T5Config) for name in ("whole", "killed")]
    assert ends[0][0] == ends[1][0] and ends[0][0].dim == 64
    for name, tensor in ends[0][1].items():
        assert torch.equal(tensor, ends[1][1][name]), name
    flags = dict(t5_weights=str(tmp_path / "whole"), vocab_size=64, bos_id=60, compute_dtype="fp32")
    loaded = make_text_encoder(settle(config_lib.replace(Config(), **flags).resolve()), Local("cpu"))
    assert isinstance(loaded, T5Encoder)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, ends[0][1][name]), name
    with pytest.raises(ValueError, match="--seed=6: the run in .* began with 5"):
        pretrain_t5.train(settings, run_config(tmp_path / "whole"), {"seed": 6})


def test_sentinels_must_be_no_pieces():
    vocabulary = str(shared_data() / "t5" / "spiece.model")
    genuine = Pretraining(vocabulary=vocabulary, data="x")
    pretrain_t5.check_sentinels(genuine.config(0))
    with pytest.raises(ValueError, match="--bos_id=32001: must be at least 32002: the 32000 pieces"):
        pretrain_t5.check_sentinels(dataclasses.replace(genuine, bos_id=32001).config(0))
    with pytest.raises(ValueError, match="--num_text_tokens=2: must be at least 3"):
        dataclasses.replace(genuine, num_text_tokens=2).config(0)
