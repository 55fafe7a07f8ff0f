"""The losses of a run as a picture."""

from matplotlib.figure import Figure

from itit import storage
from itit.training import metrics


def draw_curves(workdir, path):
    """Writes all losses of a run over its steps. Returns whether there are any."""
    curves = {key: found for key, found in metrics.curves(workdir).items() if key.startswith("loss/")}
    if not curves:
        print(f"{workdir}: no losses in {metrics.FOLDER}: no {path}")
        return False
    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    for key, (steps, values) in curves.items():
        axes.plot(steps, values, label=key.removeprefix("loss/"))
    axes.set(xlabel="step", ylabel="cross-entropy, nats a token (label smoothing included)", title="losses")
    axes.legend()
    axes.grid(alpha=0.3)
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return True
