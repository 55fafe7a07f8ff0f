"""`python -m tools.report_scenes --workdir=RUN --output=DIR [--control=RUN]`: scores a run on Scenes; what it makes.

On the pairs of the run's --eval_data (scenes with held-out objects) two shares are counted exactly: captions that say
what the picture shows (`caption_score`), and pictures that show what the prompt says (`picture_score`); the same for
the untrained model, for `--control`, a run of the same settings on pairs alone, and on the test scenes of `--also`.
Writes report.json, report.md, samples.png, curves.png and, where a run was scored while it trained, claim.png (see
claim.py) into DIR.

Shapes: B batch, N image tokens, L text tokens, S side of a picture.
"""

import dataclasses
import json

import tqdm
from absl import flags

from itit import flags as flags_lib
from itit import samples, sheets, storage, text_encoders
from itit.backends.connect import connect
from itit.checkpoint import store
from itit.data import scenes
from itit.data.streams import Streams
from itit.scores.scenes import exact, exact_by_objects
from itit.sheets import Panel, Section, in_rows
from itit.training import metrics, runs
from itit.training.state import image_ids_of, load_state, make_state
from tools.scoring import claim
from tools.scoring.curves import draw_curves

SHOWN_BY = {
    "seen": "objects that all training data show",
    "unpaired": "objects, one of them at least shown by unpaired pictures and texts alone",
    "never": "objects, one of them at least shown by no training picture and no training text",
}
CHUNK = 100
NUM_SHOWN, COLUMNS, NUM_CYCLES, NUM_TURNS = 12, 6, 3, 6


def score(translator, batch, words):
    """Shares of exact captions and pictures, and how many are exact by the number of objects.

    Args:
      batch: "image_ids" int64 [B, N], "text_ids" int64 [B, L], captions of known scenes.
      words: int64 [B, L] -> list of str.
    """
    truth = [scenes.parse(text) for text in words(batch["text_ids"])]
    captions, pictures = [], []
    for start in tqdm.tqdm(range(0, len(truth), CHUNK), "scoring", unit=" chunks", leave=False):
        part = slice(start, start + CHUNK)
        captions += [scenes.parse(text) for text in words(translator.captions(batch["image_ids"][part]))]
        made = translator.pixels(translator.pictures(batch["text_ids"][part], f"score{start}"))
        pictures += [scenes.read(picture) for picture in made]
    result = {}
    for name, found in (("caption", captions), ("picture", pictures)):
        result |= {f"{name}_score": exact(found, truth), f"{name}_score_by_objects": exact_by_objects(found, truth)}
    return result


def sample_sections(translator, batch, words):
    """Sections of prompts and their pictures, of pictures and their captions, and of cycles both ways."""

    def rows(pictures, texts, good):
        marks = ["right: " if right else "WRONG: " for right in good]
        panels = [Panel(p, mark + text) for p, text, mark in zip(pictures, texts, marks, strict=True)]
        return in_rows(panels, COLUMNS)

    ids, pictures = batch["text_ids"][:NUM_SHOWN], batch["image_ids"][:NUM_SHOWN]
    prompts, truth = words(ids), [scenes.parse(text) for text in words(ids)]
    made, given = translator.pixels(translator.pictures(ids)), translator.pixels(pictures)
    captions = words(translator.captions(pictures))
    drawn = [scenes.read(picture) == scene for picture, scene in zip(made, truth, strict=True)]
    told = [scenes.parse(text) == scene for text, scene in zip(captions, truth, strict=True)]
    return [
        Section("prompts (held-out scenes) and the pictures made from them", rows(made, prompts, drawn)),
        Section("pictures (held-out scenes) and the captions made from them", rows(given, captions, told)),
        *(samples.cycles(translator, words, start[:NUM_CYCLES], kind, NUM_TURNS)
          for kind, start in (("text", ids), ("image", pictures))),
    ]  # fmt: skip


def write_markdown(report, path, pictures):
    """`pictures`: file name -> what it shows; the claim goes first."""
    rows = [("untrained", report["untrained"]), ("pairs, before the cycles join (greedy)", report.get("before_cycles")),
            ("control: pairs alone, as many steps", report.get("control")), ("trained", report)]  # fmt: skip
    by_objects = [(name, row) for name, row in (("trained", report), ("control", report.get("control"))) if row]
    took = f", {report['minutes']} minutes in all" if report["minutes"] else ""
    lines = [
        "# Scenes: what the model has learned",
        "",
        *(["![scores over the steps](claim.png)", ""] if "claim.png" in pictures else []),
        f"{report['num_test']} test scenes of {report['test']}.",
        f"Step {report['step']}{took}.",
        "",
        "| | captions exactly right | pictures exactly right |",
        "|---|---|---|",
        *(f"| {name} | {r['caption_score']:.1%} | {r['picture_score']:.1%} |" for name, r in rows if r),
        "",
        "By number of objects:",
        "",
        "| objects | " + " | ".join(f"captions, {name} | pictures, {name}" for name, _ in by_objects) + " |",
        "|---" * (1 + 2 * len(by_objects)) + "|",
        *("| " + " | ".join([str(k), *(f"{row[f'{kind}_score_by_objects'][k]:.1%}" for _, row in by_objects
                                       for kind in ("caption", "picture"))]) + " |"
          for k in report["caption_score_by_objects"]),
        "",
        *other_scenes(report),
        *(f"![{shown}]({name})\n" for name, shown in pictures.items() if name != "claim.png"),
    ]  # fmt: skip
    storage.write_bytes(path, "\n".join(lines).encode())


def other_scenes(report):
    """Lines of markdown: the scores on the scenes of `--also`."""
    if not report["also"]:
        return []
    return [
        "Other test scenes:",
        "",
        "| | captions exactly right | pictures exactly right |",
        "|---|---|---|",
        *(f"| {name}, {run} | {found['caption_score']:.1%} | {found['picture_score']:.1%} |"
          for name, runs in report["also"].items() for run, found in runs.items()),
        "",
    ]  # fmt: skip


class Scored:
    """A run whose weights are loaded to be scored. Raises ValueError where it has no checkpoint."""

    def __init__(self, flag, workdir, backend_name):
        self.workdir = workdir
        self.config = runs.settings(workdir, flag)
        if store.latest_step(workdir) is None:
            raise ValueError(f"--{flag}={workdir}: no checkpoint in it")
        self.backend = connect(dataclasses.replace(self.config.train, backend=backend_name))
        self.state = make_state(self.config, self.backend)
        self.translator = samples.Translator(self.state, self.config, self.backend, step=0)
        self._detokenizer = text_encoders.tokenizer(self.config)

    def words(self, ids):
        return self._detokenizer.decode(ids.cpu().numpy())

    def load(self):
        """Puts the newest checkpoint into the state. Returns its step."""
        step, *_ = store.restore(
            self.workdir, lambda _, *saved: load_state(self.state, *saved, self.workdir, self.backend)
        )
        return step

    def test_scenes(self, count, pattern):
        """ "image_ids" int64 [B, N] and "text_ids" int64 [B, L] of `count` pairs of the shards of `pattern`."""
        data = dataclasses.replace(self.config.data, eval_data=pattern)
        batch = self.backend.to_device(Streams(dataclasses.replace(self.config, data=data)).sample_batch(count))
        batch["image_ids"] = self.backend.sampler(image_ids_of, batch, self.state)
        return batch


def shown_by(captions):
    """Of captions of known scenes: what shows their objects, as the rarest group of `scenes.GROUPS` among them says."""
    groups = {scenes.group_of(scenes.parse(text)) for text in captions}
    return SHOWN_BY[max(groups, key=scenes.GROUPS.index)]


def named_patterns(given):
    """["NAME=PATTERN", ...] -> dict. Raises ValueError, one line."""
    for text in given:
        if not all(text.partition("=")[::2]):
            raise ValueError(f"--also={text}: must be NAME=PATTERN, as never='ids/never-*'")
    return dict(text.split("=", 1) for text in given)


def main(_):
    flag = flags.FLAGS
    run = Scored("workdir", flag.workdir, flag.backend)
    control = Scored("control", flag.control, flag.backend) if flag.control else None
    batch = run.test_scenes(flag.num_test, run.config.data.eval_data)
    also = {name: run.test_scenes(flag.num_test, pattern) for name, pattern in named_patterns(flag.also).items()}
    untrained = score(run.translator, {key: value[:CHUNK] for key, value in batch.items()}, run.words)
    step = run.load()
    with run.state.averaged():
        report = {"step": step, "num_test": flag.num_test, "test": shown_by(run.words(batch["text_ids"]))}
        report |= score(run.translator, batch, run.words)
        report["also"] = {name: {"trained": score(run.translator, other, run.words)} for name, other in also.items()}
        sections = sample_sections(run.translator, batch, run.words)
    report |= {"untrained": untrained, "minutes": round(flag.minutes, 1) or None}
    curves, joined = {"with unpaired data": metrics.curves(flag.workdir)}, claim.join_step(run.config)
    if before := claim.before_cycles(curves["with unpaired data"], joined):
        report["before_cycles"] = before
    if control:
        control.load()
        with control.state.averaged():
            report["control"] = score(control.translator, batch, run.words)
            for name, other in also.items():
                report["also"][name]["control"] = score(control.translator, other, run.words)
        curves["control: pairs alone"] = metrics.curves(flag.control)
    storage.make_dirs(flag.output)
    sheets.write(storage.join(flag.output, "samples.png"), sections)
    pictures = {"samples.png": "samples"}
    if claim.draw(storage.join(flag.output, "claim.png"), curves, joined):
        pictures["claim.png"] = "scores over the steps"
    if draw_curves(flag.workdir, storage.join(flag.output, "curves.png")):
        pictures["curves.png"] = "losses"
    write_markdown(report, storage.join(flag.output, "report.md"), pictures)
    storage.write_bytes(storage.join(flag.output, "report.json"), json.dumps(report, indent=1).encode())
    for name, told in (("caption", "captions"), ("picture", "pictures")):
        others = {"untrained": untrained} | ({"control": report["control"]} if control else {})
        beside = ", ".join(f"{other} {found[f'{name}_score']:.1%}" for other, found in others.items())
        print(f"{told} exactly right: {report[f'{name}_score']:.1%} ({beside})")
    print(f"see {storage.join(flag.output, 'report.md')}")


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string(
        "control", "", "Folder of a run of the same settings on pairs alone, scored on the same scenes."
    )
    flags.DEFINE_string("output", None, "Folder for the report.", required=True)
    flags.DEFINE_integer("num_test", 500, "Test scenes.", lower_bound=1)
    flags.DEFINE_multi_string("also", [], "NAME=PATTERN: shards of other test scenes to score, too. May be repeated.")
    flags.DEFINE_float("minutes", 0.0, "How long everything took, for the record; 0: not told.")
    flags.DEFINE_string("backend", "auto", "auto, cpu or cuda.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
