"""The README.md of an exported model: how to use it, what it was trained on, and what was measured, as the run says."""

import hashlib
import os
import re

from itit import storage
from itit.tasks import CYCLES, STREAMS, TASKS, batches
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


def write(config, record, sha256, tensors, report):
    """Text of the card.

    Args:
      config: the run's Config.
      record: of the export.
      sha256: of its model.safetensors.
      tensors: ITIT's weights.
      report: dict of scores, or None.
    """
    m = config.model
    count = sum(tensor.numel() for tensor in tensors.values()) / 1e6
    kind = f"averaged weights (decay {config.optim.ema_decay})" if record["averaged"] else "raw weights"
    parts = [
        METADATA,
        f"# ITIT-{m.preset}, step {record['step']}",
        f"Text to image and image to text, trained on pairs and on unpaired pictures and texts (arXiv:2310.03734): "
        f"{count:.1f} M parameters, {kind}, step {record['step']} of {config.optim.num_steps}. Pictures of "
        f"{config.data.image_size} x {config.data.image_size} pixels are {m.num_image_tokens} tokens of "
        f"{m.codebook_size} codes; texts have up to {m.num_text_tokens} tokens. Written by `tools.export` of ITIT "
        f"{record['itit_version']}.",
        "## Use it",
        USE.format(folder="THIS_FOLDER", prompt="a text like those it was trained on"),
        "The networks alone, in plain torch: `itit.models.load(\"THIS_FOLDER\")`.",
        "## Training",
        table(("task", "batch", "weight", "from step"), task_rows(config)),
        f"Peak learning rate {config.optim.learning_rate:g}, seed {config.train.seed}, products in "
        f"{config.train.compute_dtype}. Every setting: `training.cfg`.",
        "## Data",
        table(("flag", "pattern", "shards", "bytes", "fingerprint"), data_rows(config)),
        "A fingerprint is of the names and sizes of the shards (SHA-256, the first 16 digits).",
        "## Parts",
        table(("part", "where", "SHA-256"), [("ITIT", "model.safetensors", sha256), *part_rows(config, record)]),
        "## Scores",
        scores(report, record["step"]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


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


def task_rows(config):
    o, rows = config.objective, []
    for task, batch in batches(o).items():
        if batch:
            name = f"{task} ({getattr(o, task)})" if task in CYCLES else task
            start = getattr(o, f"{task}_warmup_steps") if task in CYCLES else 0
            weights = {loss: f"{getattr(o, f'{loss}_weight'):g}" for loss in TASKS[task].losses}
            alone = len(weights) == 1
            told = ", ".join(weight if alone else f"{loss} {weight}" for loss, weight in weights.items())
            rows.append((name, batch, told, start))
    return rows


def data_rows(config):
    rows = []
    for name in (*STREAMS, "eval_data"):
        pattern = getattr(config.data, name)
        if pattern:
            rows.append((f"`{name}`", f"`{pattern}`", *fingerprint(pattern)))
    return rows


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
    rows = [(name, value) for name, value in _flat(report) if name != "step"]
    found = report.get("step", step)
    note = "" if found == step else f"\n\nMeasured at step {found}, not at that of these weights."
    return table(("", "value"), rows) + note


def _flat(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float, str)):
            yield f"{prefix}{name}", value
