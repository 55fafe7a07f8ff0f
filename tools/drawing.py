"""What the reports share: loss curves as a picture, sheets beneath each other, pictures written as PNG."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from itit import metrics, storage


def write_png(path, picture):
    """Writes uint8 [height, width, 3]."""
    with storage.writer(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def stack(sheets):
    """Puts sheets, uint8 [height, width, 3], beneath each other."""
    width = max(sheet.shape[1] for sheet in sheets)
    padding = [((0, 0), (0, width - sheet.shape[1]), (0, 0)) for sheet in sheets]
    return np.concatenate([np.pad(s, p, constant_values=255) for s, p in zip(sheets, padding, strict=True)])


def draw_curves(workdir, path):
    """Writes all losses of a run over its steps."""
    figure = Figure((9, 5), layout="constrained")
    axes = figure.subplots()
    for key, (steps, values) in metrics.curves(workdir).items():
        if key.startswith("loss/"):
            axes.plot(steps, values, label=key.removeprefix("loss/"))
    axes.set(xlabel="step", ylabel="cross-entropy, nats a token (label smoothing included)", title="losses")
    axes.legend()
    axes.grid(alpha=0.3)
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=110)
