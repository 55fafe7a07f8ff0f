"""report.md of studies, from results.jsonl alone: tables beside the paper's numbers and order, and plots.

Everything is counted by tools.score_scenes. Where an experiment has several seeds: mean (least to largest).
"""

import os

from itit import storage
from itit.data.scenes import GROUPS
from tools.studies import study_file, study_plots, study_results
from tools.studies.experiments import AMOUNTS
from tools.studies.study_rows import (
    DIRECTIONS,
    agreement,
    by_attribute,
    by_objects,
    cider,
    exact,
    intact,
    rows_of,
    saved,
    spread,
)

ATTRIBUTES = ("shape", "colour", "size", "place")
HEAD = """# Studies

Made by `python -m tools.study` from `results.jsonl`; nothing here is written by hand. Captions and pictures are right
if they tell exactly the objects of the scene. Test scenes are new ones: **seen**, of objects that the pairs show;
**unpaired**, with an object that only unpaired pictures and texts show; **never**, with one that no training data show.
In per cent; where an experiment has several seeds, the mean (least to largest).
"""
# The paper's score -> what is compared with it here, and whether more is better there.
COMPARED = {"FID": ("pictures", False), "CIDEr": ("captions", True)}


def write(folder, results):
    """Writes report.md and plots/ beside the file of results, with a chapter for each study of `folder` that has lines.

    Returns the path of report.md.
    """
    lines, place = study_results.read(results), os.path.dirname(os.path.abspath(results))
    chapters = [HEAD]
    for name in sorted(os.listdir(folder or ".")):
        if name.endswith(".study"):
            study = study_file.read(os.path.join(folder, name))
            rows = rows_of(study, lines)
            if any(row.lines for row in rows):
                chapters.append(chapter(study, rows, place))
    path = os.path.join(place, "report.md")
    storage.make_dirs(place)
    storage.write_bytes(path, "\n".join(chapters).encode())
    return path


def chapter(study, rows, place):
    """Markdown of one study; its plots are written into place/plots."""
    done = [row for row in rows if row.lines]
    missing = sum(len(row.experiment.seeds) for row in rows) - sum(len(row.lines) for row in rows)
    parts = [f"## {study.title}", f"`{study.path}`" + (f". {study.about}" if study.about else "")]
    if missing:
        parts.append(f"{missing} of {len(study.runs)} runs are not done yet.")
    parts += [main_table(rows), *orders(done), *factors(study, done)]
    parts += [f"![{kind}]({path})" for kind, path in plots(study, done, place)]
    parts += ["By number of objects:", objects_table(done)]
    parts += ["By attribute, all splits: places of objects at which it is right:", attributes_table(done)]
    parts += ["Cycles, all splits: scenes intact after each turn (paper figure 6):", cycles_table(done)]
    parts.append(how(study, done))
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    """Markdown of a table: list of str, list of lists of str."""
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)])


def cell(values, scale=100.0):
    """Mean, and from the least to the largest where there are several."""
    found = spread(values)
    if found is None:
        return "-"
    if found.count == 1:
        return f"{scale * found.mean:.1f}"
    return f"{scale * found.mean:.1f} ({scale * found.least:.1f} to {scale * found.largest:.1f})"


def main_table(rows):
    names = list(dict.fromkeys(name for row in rows for name in row.experiment.paper))
    head = ["experiment", "data", "seeds", *(f"{split}: {d}" for split in GROUPS for d in DIRECTIONS), "CIDEr",
            *(f"paper: {name}" for name in names), "minutes"]  # fmt: skip
    body = []
    for row in rows:
        e = row.experiment
        body.append(
            [f"**{e.name}**" + (f": {e.about}" if e.about else ""), amounts(e), f"{len(row.lines)} of {len(e.seeds)}"]
            + [cell(row.values(exact(d, split))) for split in GROUPS for d in DIRECTIONS]
            + [cell(row.values(cider), 1)]
            + [f"{e.paper[name]:g}" if name in e.paper else "-" for name in names]
            + [cell(row.values(lambda line: line["minutes"]), 1)]
        )
    return table(head, body)


def amounts(experiment):
    """The data of an experiment in a few words."""
    values = experiment.values
    parts = [f"{values[name]:,} {name}" if values[name] != "pairs" else f"the pairs' {name}"
             for name in AMOUNTS if name in values]  # fmt: skip
    return ", ".join(parts) + (f" ({values['wrong_captions']:.0%} wrong)" if values.get("wrong_captions") else "")


def orders(rows):
    """The paper's order of the experiments and ours, and how many pairs of them both tell apart alike."""
    for name, (direction, rising) in COMPARED.items():
        paper = {row.experiment.name: row.experiment.paper[name] for row in rows if name in row.experiment.paper}
        if len(paper) < 2:
            continue
        paper = paper if rising else {key: -value for key, value in paper.items()}
        parts = [f"Best {direction} first, by {name} of the paper: {listed(paper)}."]
        for split in (*GROUPS, "all"):
            ours = {row.experiment.name: spread(row.values(exact(direction, split))).mean for row in rows}
            same, total = agreement(paper, ours)
            said = "all splits" if split == "all" else split
            parts.append(f"Here, {said}: {listed({key: ours[key] for key in paper})}; {same} of {total} pairs of "
                         "experiments in the paper's order.")  # fmt: skip
        yield "\n".join(f"- {part}" for part in parts)


def listed(scores):
    """Names, the best first; equal ones joined."""
    found = {}
    for name, value in scores.items():
        found.setdefault(round(value, 4), []).append(name)
    return " > ".join(" = ".join(found[value]) for value in sorted(found, reverse=True))


def factors(study, rows):
    """How many times fewer pairs the second series needs than the first for the same share, over log x."""
    names = list(dict.fromkeys(row.experiment.series for row in rows))
    if study.plot != "lines" or not study.log_x or study.x != "pairs" or len(names) != 2:
        return
    body, points = [], {}
    for direction in DIRECTIONS:
        for split in (*GROUPS, "all"):
            for name in names:
                found = [(study.x_of(row.experiment), spread(row.values(exact(direction, split))))
                         for row in rows if row.experiment.series == name]  # fmt: skip
                points[name] = sorted((x, value) for x, value in found if value)
            if not all(points.values()):
                continue
            curves = {(name, kind): [(x, getattr(value, kind)) for x, value in points[name]]
                      for name in names for kind in ("mean", "least", "largest")}  # fmt: skip
            low = saved(curves[names[0], "largest"], curves[names[1], "least"])
            high = saved(curves[names[0], "least"], curves[names[1], "largest"])
            for (x, bound, factor), worst, best in zip(
                saved(curves[names[0], "mean"], curves[names[1], "mean"]), low, high, strict=True
            ):
                span = "" if worst == best else f" ({worst[1]} {worst[2]:.1f} to {best[1]} {best[2]:.1f})"
                body.append([direction, split, f"{x:,}", " ".join(f"{bound} {factor:.1f}{span}".split())])
    if body:
        yield (f"How many times the pairs '{names[0]}' needs for the share that '{names[1]}' reaches (straight lines "
               "over log pairs; in brackets from the seeds' extremes):")  # fmt: skip
        yield table(["", "split", "pairs", "times"], body)


def plots(study, rows, place):
    """Draws what a study asks for. Yields (what, path in the report)."""
    if study.plot != "none":
        path = f"plots/{study.name}_scores.png"
        getattr(study_plots, study.plot)(os.path.join(place, path), study, rows)
        yield "scores", path
    path = f"plots/{study.name}_cycles.png"
    if any(row.values(intact("text", 1)) for row in rows):
        study_plots.cycles(os.path.join(place, path), study, rows)
        yield "cycles", path
    path = f"plots/{study.name}_curves.png"
    if study_plots.curves(os.path.join(place, path), study, rows):
        yield "curves", path


def objects_table(rows):
    head = ["experiment", *(f"{split}: {d}, 1; 2; 3" for split in GROUPS for d in DIRECTIONS)]
    body = [[row.experiment.name] + ["; ".join(mean(row.values(by_objects(d, split, count))) for count in (1, 2, 3))
                                     for split in GROUPS for d in DIRECTIONS] for row in rows]  # fmt: skip
    return table(head, body)


def attributes_table(rows):
    names = [(direction, name) for direction in DIRECTIONS for name in ATTRIBUTES]
    body = [[row.experiment.name, *(mean(row.values(by_attribute(*name))) for name in names)] for row in rows]
    return table(["experiment", *(f"{direction}: {name}" for direction, name in names)], body)


def cycles_table(rows):
    stages = [(kind, turn) for kind in ("image", "text") for turn in study_plots.TURNS]
    words = {"image": "a picture", "text": "a text"}
    body = [[row.experiment.name, *(mean(row.values(intact(*stage))) for stage in stages)] for row in rows]
    return table(["experiment", *(f"from {words[kind]}: turn {turn}" for kind, turn in stages)], body)


def mean(values):
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def how(study, rows):
    """Where and from which code the numbers come."""
    lines = [line for row in rows for line in row.lines]
    devices = sorted({line["device"] for line in lines})
    commits = sorted({line["commit"] for line in lines})
    return f"{study.test} test scenes a split. {len(lines)} runs on {', '.join(devices)}; commits {', '.join(commits)}."
