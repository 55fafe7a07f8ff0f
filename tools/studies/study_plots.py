"""Plots of a study: scores as bars or over an axis, how long cycles hold, and scores over the steps."""

from matplotlib.figure import Figure

from itit import storage
from itit.data.scenes import GROUPS
from tools.studies.study_rows import DIRECTIONS, exact, intact, spread

TITLES = {"seen": "objects that pairs show", "unpaired": "objects that only unpaired data show",
          "never": "objects that no training data show"}  # fmt: skip
TURNS = (1, 2, 3, 4)


def _save(figure, path):
    storage.make_dirs(path.rpartition("/")[0] or ".")
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _axes(figure):
    """Directions x splits, with titles: {(direction, split): axes}."""
    grid = figure.subplots(len(DIRECTIONS), len(GROUPS), sharey="row", sharex=True, squeeze=False)
    found = {}
    for direction, row in zip(DIRECTIONS, grid, strict=True):
        row[0].set_ylabel(f"{direction} exactly right, %")
        for split, axes in zip(GROUPS, row, strict=True):
            axes.grid(alpha=0.3)
            found[direction, split] = axes
    for split, axes in zip(GROUPS, grid[0], strict=True):
        axes.set_title(TITLES[split], fontsize=10)
    return found


def _error(found):
    return [[100 * (found.mean - found.least)], [100 * (found.largest - found.mean)]]


def bars(path, study, rows):
    """A bar an experiment, its mean over the seeds, from the least to the largest as an error bar."""
    figure = Figure((4 + 0.9 * len(rows), 6.5), layout="constrained")
    for (direction, split), axes in _axes(figure).items():
        for place, row in enumerate(rows):
            found = spread(row.values(exact(direction, split)))
            if found:
                error = _error(found) if found.count > 1 else None
                axes.bar(place, 100 * found.mean, yerr=error, capsize=3, color=f"C{DIRECTIONS.index(direction)}")
        axes.set_xticks(range(len(rows)), [row.experiment.name for row in rows], rotation=60, ha="right", fontsize=8)
    figure.suptitle(study.title)
    _save(figure, path)


def lines(path, study, rows):
    """A line a series over the study's x."""
    figure = Figure((11, 6.5), layout="constrained")
    for (direction, split), axes in _axes(figure).items():
        for name in dict.fromkeys(row.experiment.series for row in rows):
            mine = [(study.x_of(row.experiment), spread(row.values(exact(direction, split))))
                    for row in rows if row.experiment.series == name]  # fmt: skip
            points = sorted((x, found) for x, found in mine if found)
            if points:
                error = [[_error(found)[side][0] for _, found in points] for side in (0, 1)]
                axes.errorbar([x for x, _ in points], [100 * found.mean for _, found in points], error, marker="o",
                              capsize=3, label=name)  # fmt: skip
        if study.log_x:
            _log_axis(axes, sorted({study.x_of(experiment) for experiment in study.experiments}))
        axes.set_ylim(bottom=0)
        if direction == DIRECTIONS[-1]:
            axes.set_xlabel(study.x_label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(study.title)
    _save(figure, path)


def _log_axis(axes, places):
    """An axis from the first to the last of the places, with a number at each."""
    axes.set_xscale("log")
    axes.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    axes.set_xticks(places, [f"{place:,}" for place in places], fontsize=8, rotation=30)
    axes.minorticks_off()


def cycles(path, study, rows):
    """Share of scenes intact over the turns of a cycle."""
    figure = Figure((11, 4.2), layout="constrained")
    for kind, axes in zip(("image", "text"), figure.subplots(1, 2, sharey=True), strict=True):
        for row in rows:
            points = [(turn, spread(row.values(intact(kind, turn)))) for turn in TURNS]
            points = [(turn, 100 * found.mean) for turn, found in points if found]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=row.experiment.name)
        axes.set(xlabel="turn", title=f"cycles that begin with a {'picture' if kind == 'image' else 'text'}")
        axes.set_xticks(TURNS)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("scenes intact, %, all splits")
    _legend(figure)
    _save(figure, path)


def curves(path, study, rows):
    """The scores of the evaluation while training, over the steps; each seed a line. Returns whether there are any."""
    figure = Figure((11, 4.2), layout="constrained")
    drawn = False
    for direction, axes in zip(DIRECTIONS, figure.subplots(1, 2), strict=True):
        for number, row in enumerate(rows):
            label = row.experiment.name
            for line in row.lines:
                if f"{direction}_exact" in line["curves"]:
                    steps, values = line["curves"][f"{direction}_exact"]
                    axes.plot(steps, [100 * value for value in values], color=f"C{number % 10}", label=label,
                              linestyle=("-", "--", ":")[number // 10 % 3], alpha=0.8)  # fmt: skip
                    label, drawn = None, True
        axes.set(xlabel="step", ylabel=f"{direction} exactly right, %", title=f"while training, split {study.eval}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    if drawn:
        _legend(figure)
        _save(figure, path)
    return drawn


def _legend(figure):
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
