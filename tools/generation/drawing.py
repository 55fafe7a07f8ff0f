"""What reports and tools share: loss curves and cycles as a picture, sheets beneath each other, PNG files."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from itit import samples, storage
from itit.training import metrics

BOX, GAP, ARROW, TITLE = 176, 14, 34, 30  # of cycles: side of a stage, between rows, between stages, head; pixels


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


def draw_cycles(title, cycles):
    """One row a cycle, its stages joined by arrows (paper figures 6, 10): uint8 [height, width, 3].

    Args:
      cycles: list of lists of str and PIL images. The first of each, which was given, is framed.
    """
    longest = max(map(len, cycles))
    page = Image.new("RGB", (2 * GAP + longest * (BOX + ARROW) - ARROW, TITLE + len(cycles) * (BOX + GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    draw.text((GAP, 6), title, "black", font)
    for row, stages in enumerate(cycles):
        top = TITLE + row * (BOX + GAP)
        for column, stage in enumerate(stages):
            left = GAP + column * (BOX + ARROW)
            if isinstance(stage, str):
                text = "\n".join(textwrap.wrap(stage, 23)[:9]) or "(nothing)"
                draw.multiline_text((left + BOX / 2, top + BOX / 2), text, "black", font, "mm", 3, "center")
            else:
                page.paste(samples.resized(np.asarray(stage), BOX), (left, top))
            if column:
                _draw_arrow(draw, left - ARROW + 6, left - 6, top + BOX // 2)
            else:
                draw.rectangle((left - 3, top - 3, left + BOX + 2, top + BOX + 2), outline="#2266cc", width=2)
    return np.asarray(page)


def _draw_arrow(draw, start, stop, y):
    draw.line((start, y, stop - 4, y), "#555555", 3)
    draw.polygon(((stop, y), (stop - 8, y - 5), (stop - 8, y + 5)), "#555555")
