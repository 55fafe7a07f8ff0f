"""What unpaired data add, as one picture: both exact scores over the steps, beside a control on pairs alone."""

from matplotlib.figure import Figure

from itit import storage
from itit.tasks import CYCLES

SCORES = {
    "caption_score": "eval/captions_exact",
    "picture_score": "eval/pictures_exact",
}  # of the evaluation, see there
TITLES = {"caption_score": "captions exactly right", "picture_score": "pictures exactly right"}


def join_step(config):
    """The step at which the first cycle joins, or None where none does."""
    o = config.objective
    steps = [getattr(o, f"{cycle}_warmup_steps") for cycle in CYCLES if getattr(o, f"{cycle}_batch")]
    return min(steps) if steps and min(steps) < config.optim.num_steps else None


def before_cycles(curves, step):
    """The last scores of the evaluation while training before the cycles join: {"step", score: share}, or None.

    Args:
      curves: of `metrics.curves`.
      step: of `join_step`.
    """
    if step is None or not all(key in curves for key in SCORES.values()):
        return None
    points = {name: dict(zip(*curves[key], strict=True)) for name, key in SCORES.items()}
    last = max((s for s in set.intersection(*map(set, points.values())) if s <= step), default=None)
    return None if last is None else {"step": last} | {name: points[name][last] for name in SCORES}


def draw(path, runs, joined):
    """Writes the picture, unless no run has scores over its steps. Returns whether there is one.

    Args:
      runs: name -> `metrics.curves` of it, the control among them.
      joined: of `join_step`.
    """
    runs = {name: curves for name, curves in runs.items() if all(key in curves for key in SCORES.values())}
    if not runs:
        return False
    figure = Figure((10, 4), layout="constrained")
    for axes, (score, key) in zip(figure.subplots(1, 2), SCORES.items(), strict=True):
        for (name, curves), style in zip(runs.items(), ("-", "--"), strict=False):
            steps, values = curves[key]
            axes.plot(steps, [100 * value for value in values], f"C0o{style}" if style == "-" else f"C1o{style}",
                      label=name, markersize=4)  # fmt: skip
        if joined is not None:
            axes.axvline(joined, color="#888888", linestyle=":", label="the cycles join")
        axes.set(xlabel="step", ylabel="% of held-out scenes", title=TITLES[score])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return True
