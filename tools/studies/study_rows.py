"""What results say of a study's experiments: the values of all seeds of each, their mean and their spread."""

from typing import NamedTuple

from itit.data.scenes import GROUPS

DIRECTIONS = ("captions", "pictures")


class Row(NamedTuple):
    """An experiment and the lines of its seeds that are done."""

    experiment: object
    lines: list

    def values(self, read):
        """read(line) of each line that has it: list of float."""
        found = []
        for line in self.lines:
            try:
                found.append(float(read(line)))
            except (KeyError, IndexError):  # of an older line, or a score that was not asked for
                continue
        return found


class Spread(NamedTuple):
    """Mean, least and largest of some values, and how many they are."""

    mean: float
    least: float
    largest: float
    count: int


def spread(values):
    """The `Spread` of a list of float, or None of none."""
    return Spread(sum(values) / len(values), min(values), max(values), len(values)) if values else None


def rows_of(study, results):
    """List of `Row`, one an experiment, in the order of the file. `results`: digest -> line."""
    return [Row(e, [results[d] for d in (study.digest(e, seed) for seed in e.seeds) if d in results])
            for e in study.experiments]  # fmt: skip


def exact(direction, split):
    """Reads the share of exact captions or pictures out of a line; of `split` "all", the mean of the splits."""
    if split == "all":
        return lambda line: sum(line["scores"][s][direction]["exact"] for s in GROUPS) / len(GROUPS)
    return lambda line: line["scores"][split][direction]["exact"]


def by_objects(direction, split, count):
    return lambda line: line["scores"][split][direction]["by_objects"][str(count)]


def by_attribute(direction, name):
    """Mean of the splits."""
    return lambda line: sum(line["scores"][s][direction]["by_attribute"][name] for s in GROUPS) / len(GROUPS)


def intact(kind, turn):
    """Share of scenes intact after this many turns of a cycle that begins with `kind`, the mean of the splits."""
    return lambda line: sum(line["scores"][s]["cycles"][kind][turn - 1] for s in GROUPS) / len(GROUPS)


def cider(line):
    """Mean of the splits."""
    return sum(line["scores"][s]["CIDEr"] for s in GROUPS) / len(GROUPS)


def agreement(paper, ours):
    """(pairs of experiments in the same order in both, pairs that the paper tells apart).

    Args:
      paper, ours: experiment's name -> number, larger is better; what one of them lacks is left out.
    """
    names = [name for name in paper if name in ours]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if paper[a] != paper[b]]
    return sum((paper[a] - paper[b]) * (ours[a] - ours[b]) > 0 for a, b in pairs), len(pairs)


def saved(base, other):
    """How many times further along x one curve gets to the height that another has already: list of (x, bound, factor).

    `bound` is "", or "at least" where the base never gets there, its last x counted, or "at most" where it begins
    above, its first x counted. Between points the base is a straight line over log x.

    Args:
      base, other: lists of (x, height), x above 0 and rising.
    """
    found = []
    for x, height in other:
        reached = [i for i, (_, value) in enumerate(base) if value >= height]
        if not reached:
            found.append((x, "at least", base[-1][0] / x))
        elif not reached[0]:
            found.append((x, "" if base[0][1] == height else "at most", base[0][0] / x))
        else:
            (x0, y0), (x1, y1) = base[reached[0] - 1], base[reached[0]]
            found.append((x, "", x0 * (x1 / x0) ** ((height - y0) / (y1 - y0)) / x))
    return found
