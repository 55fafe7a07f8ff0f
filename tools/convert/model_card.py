"""The README.md of an exported model: how to use it, what it was trained on, and what was measured, as the run says."""

import hashlib
import itertools
import os
import re

from itit import flags, storage
from itit.tasks import CYCLES, STREAMS, TASKS, of_stream
from itit.text_encoders import FAMILIES
from itit.untrusted import shown

USE = """```python
from itit import ITIT

model = ITIT.from_pretrained("{folder}")
model.generate(["{prompt}"], seed=0)[0].save("picture.png")
print(model.caption(["picture.png"]))
```"""
# What the Hugging Face Hub reads of it.
METADATA = """---
pipeline_tag: text-to-image
tags: [itit, image-to-text, arxiv:2310.03734]
---"""
_MARKUP = re.compile(r"[\\`*\[\]<>|]")
KINDS = {"paired_data": "pairs", "image_data": "unpaired pictures", "text_data": "unpaired texts"}


def write(config, record, sha256, tensors, report, history=()):
    """Text of the card.

    Args:
      config: the run's Config.
      record: of the export.
      sha256: of its model.safetensors.
      tensors: ITIT's weights.
      report: dict of scores, or None.
      history: of the run's settings, see `runs.history`; by default they were always those of `config`.
    """
    m, step = config.model, record["step"]
    history = [(begin, values) for begin, values in history if begin < step or not begin] or [(0, flags.texts(config))]
    used = tasks_used(history, step)
    kinds = [kind for stream, kind in KINDS.items() if any(task in used for task in of_stream(stream))]
    count = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    kind = f"averaged weights (decay {config.optim.ema_decay})" if record["averaged"] else "raw weights"
    parts = [
        METADATA,
        f"# ITIT-{m.preset}, step {step}",
        *([shown(record["about"], 2000)] if record.get("about") else []),
        f"Text to image and image to text (arXiv:2310.03734), trained on {listed(kinds)}: "
        f"{count:.1f} M parameters, {kind}, step {step} of {config.optim.num_steps}. Pictures of "
        f"{config.data.image_size} x {config.data.image_size} pixels are {m.num_image_tokens} tokens of "
        f"{m.codebook_size} codes; texts have up to {m.num_text_tokens} tokens. Written by `tools.export` of ITIT "
        f"{record['itit_version']}.",
        "## Use it",
        USE.format(folder="THIS_FOLDER", prompt=record.get("prompt") or "a text like those it was trained on"),
        "The networks alone, in plain torch: `itit.models.load(\"THIS_FOLDER\")`.",
        "## Training",
        table(("task", "batch", "weight", "from step"), [task_row(task, values) for task, values in used.items()]),
        f"Peak learning rate {config.optim.learning_rate:g}, seed {config.train.seed}, products in "
        f"{config.train.compute_dtype}. Every setting: `training.cfg`.",
        *changes(history),
        "## Data",
        table(("flag", "pattern", "shards", "bytes", "fingerprint"), data_rows(used, history[-1][1])),
        "A fingerprint is of the names and sizes of the shards (SHA-256, the first 16 digits).",
        "## Parts",
        table(("part", "where", "SHA-256"), [("ITIT", "model.safetensors", sha256), *part_rows(config, record)]),
        "## Scores",
        scores(report, step) + rounded(tensors),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def listed(words):
    """Some words in a sentence."""
    *most, last = words or ["nothing"]
    return f"{', '.join(most)} and {last}" if most else last


def table(head, rows):
    """Markdown. What stands in a cell is text: nothing in it, be it of a report, is markup or another cell."""
    lines = [list(map(cell, head)), ["---"] * len(head), *(map(cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(value):
    """One line of text as Markdown; one that is `code` already stays so, without what would end it."""
    text = shown(str(value), 1000)
    if len(text) > 2 and text[0] == text[-1] == "`":
        return "`" + text[1:-1].replace("`", "'").replace("|", "\\|") + "`"
    return _MARKUP.sub(r"\\\g<0>", text)


def tasks_used(history, step):
    """Task -> the last settings by which it had samples before a step: flag -> text. Of tasks that had some."""
    used, ends = {}, [begin for begin, _ in history[1:]] + [step]
    for (begin, values), end in zip(history, ends, strict=True):
        for task in TASKS:
            joins = int(values.get(f"{task}_warmup_steps", 0))
            if int(values.get(f"{task}_batch", 0)) and max(begin, joins) < end:
                used[task] = values
    return {task: used[task] for task in TASKS if task in used}


def task_row(task, values):
    name = f"{task} ({values[task]})" if task in CYCLES else task
    weights = {loss: f"{float(values[f'{loss}_weight']):g}" for loss in TASKS[task].losses}
    alone = len(weights) == 1
    told = ", ".join(weight if alone else f"{loss} {weight}" for loss, weight in weights.items())
    return name, values[f"{task}_batch"], told, values.get(f"{task}_warmup_steps", 0)


def changes(history):
    """Parts of the card: the settings that were changed on the way."""
    rows = [(begin, f"`{name}`", before.get(name, "none"), now.get(name, "none"))
            for (_, before), (begin, now) in itertools.pairwise(history)
            for name in before | now if before.get(name) != now.get(name)]  # fmt: skip
    return ["Settings that were changed on the way:", table(("from step", "flag", "before", "then"), rows)] * bool(rows)


def data_rows(used, last):
    """Of the streams that were trained on, as each task last had them, and of the evaluation in the `last` settings."""
    patterns = {}
    for task, values in used.items():
        patterns[TASKS[task].stream, values.get(TASKS[task].stream)] = None
    rows = [*sorted(patterns, key=lambda row: [*STREAMS].index(row[0])), ("eval_data", last.get("eval_data"))]
    return [(f"`{name}`", f"`{pattern}`", *fingerprint(pattern)) for name, pattern in rows if pattern]


def fingerprint(pattern):
    """(shards, bytes, hex digits) of the files that a pattern names, or a word where they are gone."""
    try:
        sizes = [(os.path.basename(path), storage.size(path)) for path in storage.glob(pattern)]
    except (ValueError, OSError):
        return "?", "?", "not there when this was written"
    text = "".join(f"{name} {size}\n" for name, size in sizes)
    return len(sizes), sum(size for _, size in sizes), hashlib.sha256(text.encode()).hexdigest()[:16]


def part_rows(config, record):
    what = {
        "t5": f"{FAMILIES[config.t5.family].title} encoder, {config.t5.num_layers} blocks of width {config.t5.dim}"
              + (f", from {config.t5.weights}" if config.t5.weights else f", RANDOM, seed {config.t5.seed}, frozen"),
        "vqgan": "image tokenizer", "vocabulary": "SentencePiece vocabulary",
    }  # fmt: skip
    for name, part in record["parts"].items():
        yield (what[name], part["path"], part["sha256"]) if part else (what[name], "none", "")


def scores(report, step):
    """The numbers of a report, nested ones by their path."""
    if report is None:
        return "None were given when this was written."
    rows = [(name, value) for name, value in _flat(report) if name != "step" and (name, str(value)) != ("minutes", "0")]
    found = report.get("step", step)
    note = "" if found == step else f"\n\nMeasured at step {found}, not at that of these weights."
    return table(("", "value"), rows) + note


def rounded(tensors):
    """A sentence where the weights are not stored as they were trained."""
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32"}
    told = f"The weights here are rounded to {', '.join(sorted(kinds))}; scores are of those before."
    return f"\n\n{told}" if kinds else ""


def _flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}", f"{value:.4g}" if isinstance(value, float) else value
