"""What the tests of the core share: a very small ITIT with random weights, fresh inputs, and every loss by name.

`seeds(n)` are fresh on every run and shown with a failure; ITIT_TEST_SEED=NUMBER runs it again.
Shapes: B batch, N image tokens, L text tokens, C codebook, V vocabulary.
"""

import os
import random
import zlib
from typing import NamedTuple

import torch

from itit import config as settings
from itit import objectives, text_encoders
from itit.masking import Masking
from itit.models import ITITModel, T5Encoder, Text, encode_text
from itit.optim import Adafactor, Ema
from itit.tasks import LOSSES, MASKED, TASKS, WORDS
from itit.train_step import State

ONE_THREAD_SIZES = dict(
    embed_dim=32, depth=2, num_heads=4, image_decoder_depth=1, text_decoder_dim=24, text_decoder_depth=1,
    text_decoder_num_heads=4, dropout=0.0, num_image_tokens=16, num_text_tokens=8, codebook_size=32, vocab_size=48,
    bos_id=40, t5_size="nano", t2i2t_warmup_steps=0, i2t2i_warmup_steps=0, num_decode_steps=3, lr_warmup_steps=0,
    num_steps=100, learning_rate=1e-3, compute_dtype="fp32", **{f"{task}_batch": 4 for task in TASKS},
)  # fmt: skip


def seeds(count):
    """Fresh seeds, the same in all processes of pytest-xdist; or the one of ITIT_TEST_SEED."""
    given, draw = os.environ.get("ITIT_TEST_SEED"), random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))
    found = [int(given)] if given else [draw.randrange(10**6) for _ in range(count)]
    print(f"ITIT_TEST_SEED: {found}")  # pytest shows it with a failure
    return found


def draw_flags(seed):
    """A value of every setting of model, objectives and decoding that takes a few: flag -> value. They fit together,
    and all tasks are on."""
    draw, values = random.Random(seed), {}
    for name, owner, field in settings.fields(settings.Config()):
        choices = (False, True) if field.type is bool else field.metadata["choices"] or ()
        if owner in ("model", "objective", "decode") and choices and name != "preset":
            values[name] = draw.choice([choice for choice in choices if choice != "off"])
    values["overwrite_kept_masked"] &= values["image_decoder_sees_text"]
    return values


def make_config(**flags):
    """The very small Config, with these flags changed."""
    return settings.replace(settings.Config(), **(ONE_THREAD_SIZES | flags)).resolve()


@torch.no_grad()
def randomize(module, seed):
    """Weights from the seed and each one's name: none is zero, and the order of construction does not matter."""
    for name, p in module.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        p.copy_(0.15 * torch.randn(p.shape, generator=generator) + float("norm" in name and name.endswith("weight")))


def make_state(config, seed):
    """A State without image tokenizer: random model, T5 and fresh optimizer."""
    model, t5 = ITITModel(config.model), text_encoders.network(config.t5)(config.t5)
    randomize(model, seed)
    t5.init_weights(seed)
    ema = Ema(model.named_parameters(), config.optim.ema_decay) if config.optim.ema_decay else None
    nothing = encode_text(t5, torch.tensor([[1] + [0] * (config.model.num_text_tokens - 1)]))
    return State(model, t5, None, nothing, Adafactor(model.named_parameters(), config.optim), ema)


def random_images(rows, config, generator):
    return torch.randint(config.model.codebook_size, (rows, config.model.num_image_tokens), generator=generator)


def random_texts(rows, config, generator):
    """Words, EOS, PAD: int64 [B, L]; the first row is the shortest, the second fills every slot."""
    length = config.model.num_text_tokens
    ids = torch.randint(2, config.model.bos_id, (rows, length), generator=generator)
    ends = torch.randint(1, length, (rows,), generator=generator)
    ends[0], ends[1:2] = 1, length - 1
    slots = torch.arange(length)
    return ids.masked_fill(slots == ends[:, None], 1).masked_fill(slots > ends[:, None], 0)


def random_batch(config, seed):
    """ "task/field" -> tensor for every task that has a batch."""
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for task in TASKS:
        rows = getattr(config.objective, f"{task}_batch")
        if rows and TASKS[task].has_picture:
            batch[f"{task}/image_ids"] = random_images(rows, config, generator)
        if rows and TASKS[task].has_text:
            batch[f"{task}/text_ids"] = random_texts(rows, config, generator)
    return batch


def random_masking(counts, num_tokens, dropped, generator):
    """Masks `counts[row]` random slots of each row and drops `dropped` of them; written without itit.masking."""
    mask, kept = torch.zeros(len(counts), num_tokens, dtype=torch.bool), []
    for row, count in enumerate(counts):
        order = torch.randperm(num_tokens, generator=generator)
        mask[row, order[:count]] = True
        kept.append(order[dropped:].sort().values)
    return Masking(mask, torch.stack(kept))


class Case(NamedTuple):
    """A model and one batch that serves every objective."""

    config: settings.Config
    model: ITITModel
    t5: T5Encoder
    empty: Text
    image_ids: torch.Tensor
    text_ids: torch.Tensor
    text: Text
    t2i_masking: Masking
    i2t_masking: Masking
    noise: object


def make_case(seed, rows=4, **flags):
    torch.manual_seed(seed)  # for what a test draws by itself
    config = make_config(**flags)
    state = make_state(config, seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = config.model.num_image_tokens
    half = tokens // 2
    t2i_counts = [half, tokens, *torch.randint(half, tokens + 1, (rows - 2,), generator=generator).tolist()]
    i2t_counts = [half, *torch.randint(half, tokens * 3 // 4 + 1, (rows - 1,), generator=generator).tolist()]
    text_ids = random_texts(rows, config, generator)
    state.model.train()
    return Case(
        config, state.model, state.t5, state.empty_text(), random_images(rows, config, generator), text_ids,
        encode_text(state.t5, text_ids), random_masking(t2i_counts, tokens, half, generator),
        random_masking(i2t_counts, tokens, half, generator),
        lambda name, shape: torch.rand(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed))
        .clamp(1e-6),
    )  # fmt: skip


def loss_of(case, loss):
    """A loss on its case: "i2t_i2i" is the image half of the image-to-text pass."""
    o, rows = case.config.objective, len(case.image_ids)
    task = next(name for name, row in TASKS.items() if loss in row.losses)
    maskings = {
        name: {"t2i": case.t2i_masking, "i2t": case.i2t_masking}[law] for name, law in TASKS[task].passes.items()
    }

    def total(of):
        if of.mean_of == WORDS:
            return (case.text_ids != 0).sum().float()
        tokens = maskings[of.masks].mask.sum().float() if of.mean_of == MASKED else None
        return tokens if of.mean_of == MASKED and o.image_loss_mean == "global" else torch.tensor(float(rows))

    image_ids, text_ids = case.image_ids, case.text_ids
    if TASKS[task].makes == "picture":
        image_ids = objectives.synthesize_image(case.model, case.text, case.empty, case.noise, o, case.config.decode)
    if TASKS[task].makes == "text":
        text_ids = objectives.synthesize_text(case.model, image_ids, case.empty)
    totals = {name: total(LOSSES[name]) for name in TASKS[task].losses}
    given = objectives.Given(image_ids, text_ids, case.text, case.empty, maskings, totals)
    return getattr(objectives, task)(case.model, case.t5, given, case.noise, o)[loss]


def gradients(model, loss):
    """Name -> gradient, zeros where a parameter has no part in the loss."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}
