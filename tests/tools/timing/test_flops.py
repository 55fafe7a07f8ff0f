"""flops against torch's counter on a step with numbers, settings drawn anew; and against the sizes of ITIT-B."""

import contextlib
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from itit import objectives, ops
from itit.config import Config, VqganConfig, replace
from itit.models import VQGAN, layers
from itit.noise import Noise
from itit.objectives import EOS
from itit.tasks import CYCLES, TASKS, only
from itit.train_step import train_step
from tests.helpers.tiny import draw_flags, make_config, make_state, seeds
from tools.timing import flops
from tools.timing.parts import OPTIMIZER, REST
from tools.timing.parts import VQGAN as VQGAN_PART

# Numbers that count, besides the settings that take a few values.
NUMBERS = {"i2t_i2i_weight": (0.0, 1.0), "t2i_text_drop_prob": (0.0, 0.5), "mlp_ratio": (2.0, 4.0), "depth": (1, 3),
           "image_decoder_depth": (1, 2), "num_decode_steps": (2, 5), "text_decoder_dim": (24, 40)}  # fmt: skip


class Everything(contextlib.nullcontext):
    """In place of torch's tracker of modules, which trips over weights that are sliced without gradient."""

    parents = {"Global"}


def counter():
    mode = FlopCounterMode(display=False)
    mode.mod_tracker = Everything()
    return mode


def random_batch(config, task, rows):
    m, batch = config.model, {}
    if TASKS[task].has_picture:
        batch[f"{task}/image_ids"] = torch.randint(m.codebook_size, (rows, m.num_image_tokens))
    if TASKS[task].has_text:
        batch[f"{task}/text_ids"] = torch.randint(3, m.bos_id, (rows, m.num_text_tokens))
    return batch


def counted(config, task, rows):
    """Torch's count of a step of one task."""
    state = make_state(config, 0)
    with torch.no_grad():
        state.model.text_decoder.head.bias[EOS] = -1e9  # no text ends early, which would save steps
    batch, noises = random_batch(config, task, rows), [Noise(0, 0, torch.device("cpu"))]
    with counter() as counting:
        train_step(state, batch, noises, 1e-3, config, {task: rows})
    return counting.get_total_flops()


@pytest.mark.parametrize("task, cycle", [(task, cycle) for task in TASKS
                                         for cycle in (("full", "half") if task in CYCLES else ("off",))])  # fmt: skip
@pytest.mark.parametrize("attempt", range(3))
def test_every_task_as_torch_counts_it(monkeypatch, task, cycle, attempt):
    drawn = draw_flags(random.random()) | {name: random.choice(values) for name, values in NUMBERS.items()}
    rows = random.randint(1, 4)
    own = {f"{task}_batch": rows} | ({task: cycle} if task in CYCLES else {})
    config = make_config(**drawn | only(task) | own)
    found = flops.step_flops(config, {task: rows})  # with recomputation, which does not count
    monkeypatch.setattr(ops, "checkpoint", lambda function, *args, **kwargs: function(*args))
    assert sum(found.values()) == counted(config, task, rows), (drawn, found)


def test_parts_of_several_tasks_add_up():
    config = make_config()
    active = {task: number for number, task in enumerate(TASKS, 1)}
    together = flops.step_flops(config, active)
    alone = [flops.step_flops(config, {task: number}) for task, number in active.items()]
    for part, number in together.items():
        assert number == sum(one.get(part, 0) for one in alone)
    assert list(together) == [part for part in flops.PARTS if part not in (VQGAN_PART, OPTIMIZER, REST)]


TOKENIZERS = (
    {"local_encoder": False}, {"local_encoder": True}, {"family": "maskgit"}, {"family": "taming", "bottleneck_dim": 6},
    {"family": "taming", "attention_levels": (1,), "middle_attention": True},
)  # fmt: skip


@pytest.mark.parametrize("seed", seeds(1))
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_image_tokenizer(kind, seed):
    draw = random.Random(seed)
    levels = draw.choice(((1, 2), (1, 1, 2), (2, 1, 3)))
    config = VqganConfig(image_size=16 * 2 ** len(levels), patch_size=draw.choice((1, 2)), channels=8,
                         channel_multipliers=levels, num_res_blocks=draw.choice((1, 2)), latent_dim=12,
                         **kind, codebook_size=32)  # fmt: skip
    pixels = torch.randint(256, (3, config.image_size, config.image_size, 3), dtype=torch.uint8)
    with counter() as counting, torch.no_grad():
        VQGAN(config).tokenize(pixels)
    step = flops.step_flops(make_config(num_image_tokens=config.grid**2), {"t2i": 3, "t2t": 5}, config)
    assert step[VQGAN_PART] == counting.get_total_flops()


def test_sizes_of_itit_b():
    """Counted by hand from widths and depths (2 a multiplication), to a few percent: GFLOP a sample."""
    config = replace(Config(), t2i2t_warmup_steps=0, i2t2i_warmup_steps=0).resolve()
    found = flops.step_flops(config, dict.fromkeys(("t2i", "i2t", "t2i2t", "i2t2i"), 1), VqganConfig())
    expected = {"T5 of the texts": 2 * 594, "VQGAN": 3 * 130, "t2i": 231, "i2t + i2i": 292, "t2i2t synthesis": 4857,
                "t2i2t middle": 164, "t2i2t final": 164, "i2t2i synthesis": 91, "i2t2i middle": 112,
                "i2t2i final, with T5": 231 + 1189}  # fmt: skip
    assert {part: number / 1e9 for part, number in found.items()} == pytest.approx(expected, rel=0.05)


def test_another_block_is_counted_as_it_is(monkeypatch):
    config, active = make_config(), {"t2i": 2}
    before = flops.step_flops(config, active)["t2i"]
    make = layers.Mlp.__init__
    monkeypatch.setattr(layers.Mlp, "__init__", lambda self, dim, hidden, *args: make(self, dim, 3 * hidden, *args))
    m = config.model
    text, kept = m.num_text_tokens, m.num_image_tokens // 2
    tokens = m.depth * (kept + text) + m.image_decoder_depth * (m.num_image_tokens + text)
    more = 2 * 2 * m.embed_dim * int(2 * m.mlp_ratio * m.embed_dim) * tokens
    assert flops.step_flops(config, active)["t2i"] == before + 2 * 3 * more


def test_what_nobody_can_count_is_refused(monkeypatch):
    lib = torch.library.Library("itit_test", "DEF")
    lib.define("unheard(Tensor x) -> Tensor")
    lib.impl("unheard", torch.clone, "CompositeExplicitAutograd")
    loss = objectives.t2t

    def strange(*args):
        return {name: torch.ops.itit_test.unheard(value.detach()) + value for name, value in loss(*args).items()}

    monkeypatch.setattr(objectives, "t2t", strange)
    with pytest.raises(ValueError, match="itit_test.unheard.default: nobody says how much arithmetic"):
        flops.step_flops(make_config(), {"t2t": 1})
    with pytest.raises(KeyError, match="unheard"):
        flops.step_flops(make_config(), {"unheard": 1})
