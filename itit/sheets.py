"""Pictures and texts on one page: titled rows, in which a text stands beneath its picture, or alone in its place.

What the font (DejaVu Sans: Latin, Greek, Cyrillic and more) has no shape for is drawn as a box.

Shapes: S side of the square that a picture is fitted into, in pixels.
"""

import functools
import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from itit import storage
from itit.data import images

SIDE, MIN_WIDTH, GAP, ARROW = 128, 400, 12, 36  # of a picture, a page; between panels, and where an arrow joins them
MAX_LINES = 12  # of a text; beneath a row there is as much room as its longest text takes
INK, FRAME, GIVEN = "#222222", "#cccccc", "#2266cc"


class Panel(NamedTuple):
    """A picture, uint8 [height, width, 3] or of PIL, with a text beneath; without one the text stands in its place."""

    picture: np.ndarray | Image.Image | None
    text: str = ""


class Section(NamedTuple):
    """A title and the rows of `Panel`s below it. `joined`: each is made from the one before, by an arrow; the first was
    given, and is framed."""

    title: str
    rows: list
    joined: bool = False


def in_rows(panels, columns):
    """list of panels -> list of rows of `columns`, the last of what is left."""
    return [panels[i : i + columns] for i in range(0, len(panels), columns)]


def draw(sections, side=SIDE):
    """Draws `Section`s beneath each other, their pictures fitted into S = `side`: uint8 [height, width, 3]."""
    widths = [2 * GAP + side + (len(row) - 1) * _step(side, joined) for _, rows, joined in sections for row in rows]
    width, parts = max([MIN_WIDTH, *widths]), []
    for title, rows, joined in sections:
        parts += [_title(title, width), *(_row(row, width, side, joined) for row in rows)]
    return np.concatenate(parts)


def write(path, sections, side=SIDE):
    """`draw` into a PNG file."""
    with storage.writer(path) as file:
        Image.fromarray(draw(sections, side)).save(file, "PNG")


def fitted(picture, side):
    """A `Panel`'s picture, its longer side S: what is smaller shows its pixels, what is larger is averaged."""
    picture = images.to_rgb(picture) if isinstance(picture, Image.Image) else Image.fromarray(picture)
    scale = side / max(picture.size)
    size = [max(1, round(length * scale)) for length in picture.size]
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)


def wrapped(text, font, width, max_lines):
    """Lines of a text that are at most `width` pixels long, broken at spaces where there are any. Where it needs more
    than `max_lines`, the last one ends in "…"."""
    lines, rest = [], " ".join(text.split())
    while rest and len(lines) < max_lines:
        fits = _fitting(rest, font, width)
        space = rest.rfind(" ", 0, fits + 1) if fits < len(rest) else -1
        end = space if space > 0 else fits
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = lines[-1][: _fitting(lines[-1], font, width - font.getlength("…"))].rstrip() + "…"
    return lines


def _fitting(text, font, width):
    """How many of the first characters are at most `width` pixels long: one at least."""
    low, high = 1, min(len(text), int(width) // 2)  # hardly a letter is narrower than two pixels
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


@functools.cache
def _font(size):
    """The font that comes with matplotlib, which need not be loaded for it."""
    folder = pathlib.Path(importlib.util.find_spec("matplotlib").origin).parent
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _height(font):
    return sum(font.getmetrics())


def _step(side, joined):
    return side + (ARROW if joined else GAP)


def _write(pen, lines, font, x, top, anchor="la"):
    for number, line in enumerate(lines):
        pen.text((x, top + number * _height(font)), line, INK, font, anchor)


def _title(text, width):
    font = _font(14)
    lines = wrapped(text, font, width - 2 * GAP, MAX_LINES)
    page = Image.new("RGB", (width, 2 * GAP + len(lines) * _height(font)), "white")
    _write(ImageDraw.Draw(page), lines, font, GAP, GAP)
    return np.asarray(page)


def _row(panels, width, side, joined):
    font, step = _font(12), _step(side, joined)
    texts = [wrapped(panel.text, font, side, MAX_LINES) for panel in panels]
    above, beneath = [side], [0]
    for panel, lines in zip(panels, texts, strict=True):
        (above if panel.picture is None else beneath).append(len(lines) * _height(font))
    page = Image.new("RGB", (width, GAP + max(above) + max(beneath) + GAP), "white")
    pen, middle, bottom = ImageDraw.Draw(page), GAP + max(above) // 2, GAP + max(above)
    for i, (panel, lines) in enumerate(zip(panels, texts, strict=True)):
        left = GAP + i * step
        if panel.picture is None:
            lines = lines or ["(nothing)"]
            _write(pen, lines, font, left + side // 2, middle - len(lines) * _height(font) // 2, "ma")
        else:
            picture = fitted(panel.picture, side)
            x, y = left + (side - picture.width) // 2, middle - picture.height // 2
            pen.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=FRAME)
            page.paste(picture, (x, y))
            _write(pen, lines, font, left, bottom + 2)
        if joined and i:
            _arrow(pen, left - ARROW + 5, left - 5, middle)
        elif joined:
            pen.rectangle((left - 4, GAP - 4, left + side + 3, bottom + 3), outline=GIVEN, width=2)
    return np.asarray(page)


def _arrow(pen, start, stop, y):
    pen.line((start, y, stop - 4, y), "#555555", 3)
    pen.polygon(((stop, y), (stop - 8, y - 5), (stop - 8, y + 5)), "#555555")
