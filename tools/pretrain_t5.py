"""`python -m tools.pretrain_t5 --data=SHARDS --vocabulary=MODEL --output=DIR`: a small T5 encoder from texts alone.

For machines that can download none: T5's own pre-training, span corruption, on the texts of TFRecord shards. DIR is
then what `--t5_weights` takes. A killed run carries on; same flags, same weights.

What is hidden has to be written by something. That is ITIT's own text decoder, one block deep, with the features as its
memory: an encoder alone could not say how many words a sentinel stands for, and the house has no second decoder. Being
shallow, it leaves the work to the encoder; it is thrown away at the end.

Shapes: B batch, L text tokens, T target tokens, V vocabulary.
"""

import dataclasses
import sys
from typing import NamedTuple

import torch
from absl import flags
from torch import nn

from itit import config as config_lib
from itit import flags as flags_lib
from itit import train_step
from itit.backends.connect import connect
from itit.checkpoint import store, weightsdir
from itit.checks import check_batches
from itit.config import Config, knob
from itit.data.streams import Streams
from itit.data.text import PAD, Detokenizer
from itit.losses import token_cross_entropy
from itit.models import T5Encoder
from itit.models.layers import init_weights
from itit.models.text_decoder import TextDecoder
from itit.optim import Adafactor, learning_rate
from itit.presets import T5_PRESETS
from itit.program import program, running
from itit.tasks import only
from tools.training import loop, run_flags
from tools.training.span_corruption import Corrupted, num_hidden, target_length

TASK = "t2t"  # the stream of texts alone
RUN = run_flags.section(without=("sample_every", "num_samples"), checkpoint_every=200, keep_last=2)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Data, sizes and schedule."""

    data: str | None = knob(None, "TFRecord shards with texts, comma-separated patterns.")
    vocabulary: str = knob("", "SentencePiece model (.model); may be empty where the records hold text_ids.")
    t5_size: str = knob("nano", "Size of the encoder.", tuple(T5_PRESETS))
    num_text_tokens: int = knob(32, "Text tokens with EOS; longer texts are cut.")
    vocab_size: int = knob(32128, "Rows of the vocabulary, as ITIT's.")
    bos_id: int = knob(32100, "As ITIT's; the ids below it, from bos_id - 1 down, are the sentinels, as T5's.")
    batch_size: int = knob(64, "Texts a step.")
    num_steps: int = knob(2000, "Optimizer steps.")
    learning_rate: float = knob(2e-3, "Peak learning rate of Adafactor; linear warm-up, cosine to 0.")
    lr_warmup_steps: int = knob(100, "Steps of warm-up.")

    def config(self, seed):
        """The Config of the same settings, resolved. Raises ValueError, one line."""
        if self.num_text_tokens < 3:
            raise ValueError(f"--num_text_tokens={self.num_text_tokens}: must be at least 3: two words and EOS")
        own = dataclasses.asdict(self) | {"text_data": self.data, f"{TASK}_batch": self.batch_size, "seed": seed}
        own = {name: value for name, value in own.items() if name not in ("data", "batch_size")}
        return config_lib.replace(Config(), **only(TASK), **own, dropout=0.0, weight_decay=0.0).resolve()


class Pretrained(nn.Module):
    """The encoder and the decoder that its features are judged by."""

    def __init__(self, config):
        super().__init__()
        self.encoder = T5Encoder(config.t5)
        self.encoder.init_weights(config.train.seed)
        self.encoder.requires_grad_(True)
        dim = config.t5.dim
        self.decoder = TextDecoder(dataclasses.replace(
            config.model, embed_dim=dim, text_decoder_dim=dim, text_decoder_depth=1, text_decoder_num_heads=dim // 16,
            num_text_tokens=target_length(config.model.num_text_tokens)))  # fmt: skip
        self.decoder.apply(init_weights)

    def forward(self, inputs, targets, bos_id):
        """int64 [B, L], [B, T] -> logits float32 [B, T, V] of the targets, each given those before it."""
        mask = inputs != PAD
        before = torch.cat([torch.full_like(targets[:, :1], bos_id), targets[:, :-1]], 1)
        return self.decoder(before, self.encoder(inputs, mask=mask), mask)


class State(NamedTuple):
    """All that a step reads and changes."""

    model: Pretrained
    optimizer: Adafactor
    ema: None = None

    tensors = train_step.State.tensors

    def placed_rows(self):
        return ()


def make_state(config, backend):
    """A fresh State from the seed."""
    torch.manual_seed(config.train.seed)
    model = backend.adopt(Pretrained(config))
    state = State(model, Adafactor(model.named_parameters(), config.optim))
    backend.place_state(state)
    return state


@program(varying=("rate",), updates=lambda state, *_: state.tensors().values())
def update(state, inputs, targets, rate, bos_id):
    """One step in place. Returns "loss", "accuracy" (of hidden words, sentinels and EOS), "grad_norm",
    "skipped": 0-d tensors."""
    logits = state.model(inputs, targets, bos_id)
    weights = (targets != PAD).float()
    loss = token_cross_entropy(logits, targets, weights, weights.sum(), 0.0)
    loss.backward()
    right = ((logits.argmax(-1) == targets) * weights).sum() / weights.sum()
    norm, made = state.optimizer.step(rate, torch.isfinite(loss.detach()))
    return {"loss": loss.detach(), "accuracy": right.detach(), "grad_norm": norm, "skipped": 1 - made.float()}


def check_sentinels(config):
    """Raises ValueError where the longest text's sentinels would be pieces of the vocabulary."""
    if not config.data.vocabulary:
        return
    _, spans = num_hidden(config.model.num_text_tokens - 1)
    pieces = Detokenizer(config.data.vocabulary).num_pieces
    if config.model.bos_id - spans < pieces:
        raise ValueError(f"--bos_id={config.model.bos_id}: must be at least {pieces + spans}: the {pieces} pieces of "
                         f"{config.data.vocabulary}, and {spans} sentinels below bos_id")  # fmt: skip


def train(settings, run, flag_values):
    """Trains and writes the encoder. Returns the exit code."""
    backend = connect(run)
    config = dataclasses.replace(settings.config(run.seed), train=run)
    check_batches({TASK: settings.batch_size}, backend.num_devices)
    check_sentinels(config)
    streams = Streams(config, backend.hosts.index, backend.hosts.count)
    source = Corrupted(streams, TASK, settings.num_text_tokens, settings.bos_id - 1, run.seed)
    state = make_state(config, backend)

    def step(batch, number):
        rate = learning_rate(number, config.optim)
        with running(backend.run):
            values = update(state, batch["inputs"], batch["targets"], rate, settings.bos_id)
        return values | {"learning_rate": rate}

    code = loop.train(run, settings.num_steps, state, backend, source, step, lambda *_: None, flag_values)
    if code == 0 and store.latest_step(run.workdir) == settings.num_steps:
        weights = backend.on_host(state.model.encoder.state_dict())
        if backend.hosts.leads:
            weightsdir.save(run.workdir, weights, config.t5)
            print(f"{run.workdir}: a T5-{settings.t5_size} encoder, for --t5_weights={run.workdir}")
    return code


def define_flags():
    flags_lib.define(Pretraining())
    flags_lib.define(RUN)
    flags.DEFINE_string("output", None, "Folder for the weights.")
    flags.mark_flags_as_required(["data", "output"])


def main(_):
    settings = flags_lib.from_flags(Pretraining())
    run = run_flags.train_config(RUN, flags.FLAGS.output, sample_every=0)
    values = run_flags.values_of(settings) | {"seed": run.seed}
    sys.exit(train(settings, run, values))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
