"""`python -m tools.report_own --folder=DIR --step=N`: the page about a run that tools.start has made, DIR/report.md.

Scores of captions of held-out pictures, beside those of true captions of other such pictures (what a model would get
that knows the texts and sees nothing); the loss on held-out pairs over the steps; samples. Writes report.md,
curves.png, scores.png and, last, step_N/report.json.
"""

import json

from absl import flags
from matplotlib.figure import Figure

from itit import flags as flags_lib
from itit import storage
from itit.scores import captions
from itit.training import metrics
from tools.generation import inputs
from tools.scoring.curves import draw_curves

SCORES = {"CIDEr": "CIDEr", "Bleu_4": "BLEU-4", "ROUGE_L": "ROUGE-L"}
KINDS = {"paired": "pairs", "held_out": "held-out pairs", "images": "unpaired pictures", "texts": "unpaired texts"}
READING = """\
- Reconstructions are the best that pictures can become. Blurred ones: more steps or codes for the image tokenizer, in a
  copy of `launch/flagfiles/own_vqgan.cfg` given by `--tokenizer`.
- The loss on held-out captions rises again, captions are of other pictures: pairs are over-fitted. More unpaired data
  or pairs, `--dropout=0.2`.
- Both still get better at the end: the same command with a larger `--num_steps`.

More of this: the head of `launch/flagfiles/own.cfg`, and `launch/SETTINGS.md`.
"""


def by_chance(references):
    """Scores of a true caption of another picture, the next one; None where there is no other. `references`: list of
    lists of str."""
    if len(references) < 2:
        return None
    others = [texts[0] for texts in [*references[1:], references[0]]]
    return captions.score(others, references)


def amounts(folder):
    """Lines: how much of everything there was, and what was left out."""
    lines = []
    for name in ("data", "texts"):
        path = storage.join(folder, name, "dataset.json")
        if storage.exists(path):
            found = json.loads(storage.read_bytes(path))
            lines += [f"| {KINDS[split]} | {values['records']} |" for split, values in found["splits"].items()]
            if found["damaged"]:
                lines.append(f"| damaged, left out: `{name}/damaged.txt` | {found['damaged']} |")
    return lines


def best(curve):
    """What a curve of a loss on held-out pairs, (steps, values), says: a sentence, or "" where it is too short."""
    steps, values = curve
    if len(steps) < 2:
        return ""
    place = min(range(len(values)), key=values.__getitem__)
    low = f"Loss on held-out captions: {values[place]:.2f} at step {steps[place]}, its lowest"
    return f"{low}, and {values[-1]:.2f} at the end." if place < len(values) - 1 else f"{low}, the end."


def draw_scores(curves, path):
    """Writes CIDEr and both losses on held-out pairs over the steps."""
    figure = Figure((9, 3.5), layout="constrained")
    for axes, names in zip(figure.subplots(1, 2), (("CIDEr",), ("i2t", "t2i")), strict=True):
        for name in names:
            if f"eval/{name}" in curves:
                axes.plot(*curves[f"eval/{name}"], marker=".", label=name)
        axes.set(xlabel="step", title=f"held-out pairs: {' and '.join(names)}")
        axes.legend()
        axes.grid(alpha=0.3)
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=110)


def page(folder, step, scores, chance, tokenizer, curves):
    """The text of report.md. `scores`, `chance`: as captions.score returns them; `tokenizer`: reconstruct's report."""
    count = scores["num_images"]
    small = "; CIDEr of so few compares with nothing but other runs on these very pictures"
    return "\n".join([
        f"# One's own data: ITIT after {step} steps", "",
        "| what | how many |", "|---|---|", *amounts(folder), "",
        f"Captions of {count} held-out pictures, scores times 100{small if count < captions.SMALL_SET else ''}:", "",
        "| | " + " | ".join(SCORES.values()) + " |", "|---" * (1 + len(SCORES)) + "|",
        *(f"| {name} | " + " | ".join(f"{100 * row[key]:.1f}" for key in SCORES) + " |"
          for name, row in (("the model's", scores), ("true captions of other pictures", chance)) if row),
        "",
        *filter(None, [best(curves.get("eval/i2t", ((), ())))]), "",
        "## Pictures from held-out captions", "", f"![drawn](step_{step}/drawn/sheet.png)", "",
        "## Captions of held-out pictures", "", f"![told](step_{step}/told/sheet.png)", "",
        "## The image tokenizer", "",
        f"Held-out pictures and what is left of them in {tokenizer['num_tokens'] // tokenizer['num_pictures']} tokens: "
        f"PSNR {tokenizer['psnr_db']:.1f} dB, {tokenizer['codes_used']} of {tokenizer['codebook_size']} codes used.",
        "", "![reconstructions](reconstructed/reconstructions.png)", "",
        "## Curves", "", "![scores of held-out pairs](scores.png)", "", "![losses](curves.png)", "",
        "## How to read it", "", READING,
    ])  # fmt: skip


def main(_):
    folder, step = flags.FLAGS.folder, flags.FLAGS.step
    workdir, at = storage.join(folder, "itit"), storage.join(folder, f"step_{step}")
    scores = json.loads(storage.read_bytes(storage.join(at, "scores.json")))
    told = {line["image_id"] for line in json.loads(storage.read_bytes(storage.join(at, "told", "captions.json")))}
    references = inputs.references(storage.join(folder, "data", "held_out-*.tfrecord"))
    chance = by_chance([texts for image_id, texts in references.items() if image_id in told])
    tokenizer = json.loads(storage.read_bytes(storage.join(folder, "reconstructed", "report.json")))
    curves = metrics.curves(workdir)
    draw_curves(workdir, storage.join(folder, "curves.png"))
    draw_scores(curves, storage.join(folder, "scores.png"))
    text = page(folder, step, scores, chance, tokenizer, curves)
    storage.write_bytes(storage.join(folder, "report.md"), text.encode())
    report = {"step": step, "scores": scores, "chance": chance, "psnr_db": tokenizer["psnr_db"]}
    storage.write_bytes(storage.join(at, "report.json"), json.dumps(report, indent=1).encode())
    print(f"{folder}/report.md: CIDEr of {scores['num_images']} held-out pictures {100 * scores['CIDEr']:.1f}")


def define_flags():
    flags.DEFINE_string("folder", None, "Folder that tools.start fills.", required=True)
    flags.DEFINE_integer("step", None, "Whose samples and scores are shown.", required=True)


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
