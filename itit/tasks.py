"""The tasks of ITIT, once: one row each, and whatever is told of a task or done for it goes by its row.

A row makes the settings of its task (`config.ObjectiveConfig`), its share of a stream of data, its masks, the totals
of its losses, and its name in profiles, cards and studies. Its losses are what the function of its name in
`objectives.py` returns. Standard library only.
"""

from typing import NamedTuple

# Stream of data, which is the flag of its shards, too -> what its records hold.
STREAMS = {"paired_data": ("picture", "text"), "image_data": ("picture",), "text_data": ("text",)}

# What a loss is a mean of: masked tokens of a pass, words of the task's texts, samples; or a loss of the whole batch,
# which is no sum over its parts, and is refused where there are several (--num_microbatches).
MASKED, WORDS, SAMPLES, WHOLE_BATCH = "masked tokens", "words", "samples", "whole batch"

TEXT_PASSES = 4  # forward passes that take as long as making a text: of B, on a processor and on a GPU


class Loss(NamedTuple):
    """`about`: what --NAME_weight is the weight of. `mean_of`: one of the four above. `masks`: of MASKED, the pass."""

    about: str
    mean_of: str
    masks: str = ""


class Task(NamedTuple):
    """One row.

    Attributes:
      stream: where its samples come from; with it, whether they have pictures and texts.
      batch, about: default and help of --NAME_batch.
      losses: name -> Loss; --NAME_weight is the weight of each.
      passes: its passes with a mask, name -> the task whose law the ratio follows, "t2i" or "i2t"
        (--mask_ratio_max_t2i, --mask_ratio_max_i2t).
      features: whether it reads the text encoder's features of its texts.
      cycle: of a cycle, what to call it; it then has --NAME (off, half, full) and --NAME_warmup_steps.
      makes: what a cycle makes of its samples first, "picture" or "text".
      title: what profiles call the computation of its losses, by default its name.
    """

    stream: str
    batch: int
    about: str
    losses: dict
    passes: dict = {}
    features: bool = False
    cycle: str = ""
    makes: str = ""
    title: str = ""

    @property
    def has_picture(self):
        return "picture" in STREAMS[self.stream]

    @property
    def has_text(self):
        return "text" in STREAMS[self.stream]


# Tasks of one stream take its records in the order in which they stand here.
TASKS = {
    "t2i": Task(
        "paired_data", 512, "Pairs a step for text-to-image.", features=True, passes={"t2i": "t2i"},
        losses={"t2i": Loss("the text-to-image loss", MASKED, "t2i")},
    ),
    "i2t": Task(
        "paired_data", 512, "Pairs a step for image-to-text and, in the same pass, image-to-image.", title="i2t + i2i",
        passes={"i2t": "i2t"},
        losses={"i2t": Loss("the image-to-text loss", WORDS),
                "i2t_i2i": Loss("the image-to-image loss of the image-to-text pass; 0: off (unstated)", MASKED, "i2t")},
    ),
    "t2i2t": Task(
        "text_data", 512, "Unpaired texts a step for the text-image-text cycle.", features=True,
        cycle="text-image-text cycle", makes="picture", title="t2i2t final",
        passes={"t2i2t/first": "t2i", "t2i2t/second": "i2t"},
        losses={"t2i2t": Loss("the text-image-text cycle", WORDS)},
    ),
    "i2t2i": Task(
        "image_data", 512, "Unpaired pictures a step for the image-text-image cycle.", cycle="image-text-image cycle",
        makes="text", title="i2t2i final, with T5", passes={"i2t2i/first": "i2t", "i2t2i/second": "t2i"},
        losses={"i2t2i": Loss("the image-text-image cycle", MASKED, "i2t2i/second")},
    ),
    "t2t": Task(
        "text_data", 0, "Unpaired texts a step for plain language modelling (P table 2, rows 5, 7).",
        losses={"t2t": Loss("the language modelling loss", WORDS)},
    ),
    "i2i": Task(
        "image_data", 0, "Unpaired pictures a step for image-to-image (P table 2, rows 6, 7).", title="i2i, unpaired",
        passes={"i2i": "t2i"}, losses={"i2i": Loss("the unpaired image-to-image loss", MASKED, "i2i")},
    ),
}  # fmt: skip
CYCLES = [name for name, task in TASKS.items() if task.cycle]
LOSSES = {name: loss for task in TASKS.values() for name, loss in task.losses.items()}


def of_stream(stream):
    """Names of the tasks that take from a stream."""
    return [name for name, task in TASKS.items() if task.stream == stream]


def batches(objective):
    """Task -> samples of a step, of every task; `objective` is an ObjectiveConfig."""
    return {name: getattr(objective, f"{name}_batch") for name in TASKS}


def cost(config, active):
    """What a step costs, in forward passes of samples: to tell how much longer another step of a run takes than one
    that was timed. `active`: task -> samples.

    A loss takes three, its backward pass included; in a whole cycle two go before it, of which half has no gradient.
    """
    o, d, total = config.objective, config.decode, 0
    made = {"": 0, "picture": (d.synth_decode_steps or d.num_decode_steps) * (1 + d.synth_cfg), "text": TEXT_PASSES}
    for name, samples in active.items():
        task = TASKS[name]
        whole = task.cycle and (getattr(o, name) == "full" or o.half_cycle == "stop_gradient")
        total += samples * (3 + 2 * bool(whole) + made[task.makes])
    return total


def off(*names):
    """Settings that switch these tasks off: flag -> value."""
    return {f"{name}_batch": 0 for name in names} | {name: "off" for name in names if name in CYCLES}


def only(*names):
    """Settings that switch all tasks but these off: flag -> value."""
    return off(*(name for name in TASKS if name not in names))
