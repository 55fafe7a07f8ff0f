"""tools.generation.drawing: sheets beneath each other, PNG files, the loss curves of a run."""

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from itit.training.metrics import Metrics
from tools.generation import drawing


def test_sheets_lie_beneath_each_other_on_white():
    sizes = np.random.default_rng().integers(3, 20, size=(4, 2))
    sheets = [np.random.default_rng().integers(255, size=(h, w, 3), dtype=np.uint8) for h, w in sizes]
    page = drawing.stack(sheets)
    assert page.dtype == np.uint8 and page.shape == (sizes[:, 0].sum(), sizes[:, 1].max(), 3)
    top = 0
    for sheet in sheets:
        height, width, _ = sheet.shape
        assert np.array_equal(page[top : top + height, :width], sheet)
        assert (page[top : top + height, width:] == 255).all()
        top += height


def test_a_png_holds_the_picture(tmp_path):
    picture = np.random.default_rng().integers(256, size=(11, 17, 3), dtype=np.uint8)
    drawing.write_png(str(tmp_path / "a.png"), picture)
    found = Image.open(tmp_path / "a.png")
    assert found.format == "PNG" and np.array_equal(np.asarray(found), picture)


def test_every_loss_is_a_curve(tmp_path, monkeypatch):
    losses = {name: np.random.default_rng().uniform(1, 9, size=5) for name in ("t2i", "i2t2i")}
    with Metrics(str(tmp_path), 100) as metrics:
        for i in range(5):
            metrics.scalars(10 * i, {"grad_norm": 1.0} | {f"loss/{name}": v[i] for name, v in losses.items()})
    drawn, plot = {}, Axes.plot

    def recorded(self, steps, values, label):
        drawn[label] = steps, values
        return plot(self, steps, values, label=label)

    monkeypatch.setattr(Axes, "plot", recorded)
    drawing.draw_curves(str(tmp_path), str(tmp_path / "curves.png"))
    assert drawn.keys() == losses.keys()
    for name, (steps, values) in drawn.items():
        assert steps == [0, 10, 20, 30, 40] and np.allclose(values, losses[name])
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    assert picture.shape[:2] == (550, 990)
    assert (np.ptp(picture, axis=2) > 60).any()  # coloured lines


def test_without_losses_there_are_no_curves(tmp_path, capsys):
    for make in (lambda: None, lambda: (tmp_path / "tensorboard").mkdir(), lambda: Metrics(str(tmp_path), 9).close()):
        make()
        assert not drawing.draw_curves(str(tmp_path), str(tmp_path / "curves.png"))
        assert capsys.readouterr().out == f"{tmp_path}: no losses in tensorboard: no {tmp_path}/curves.png\n"
        assert not (tmp_path / "curves.png").exists()


def test_cycles_are_drawn_stage_by_stage():
    pixels = np.random.default_rng().integers(256, size=(16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    page = drawing.draw_cycles("title", [["a red circle", picture, "a word " * 60], [picture, "", picture]])
    side, step = drawing.BOX, drawing.BOX + drawing.ARROW
    assert page.shape == (drawing.TITLE + 2 * (side + drawing.GAP), 2 * drawing.GAP + 2 * step + side, 3)

    def cell(row, column):
        top, left = drawing.TITLE + row * (side + drawing.GAP), drawing.GAP + column * step
        return page[top : top + side, left : left + side]

    for row, column in ((0, 1), (1, 0), (1, 2)):
        assert np.array_equal(cell(row, column), pixels.repeat(11, 0).repeat(11, 1))
    for row, column in ((0, 0), (0, 2), (1, 1)):
        ink = (cell(row, column) < 128).all(-1)
        assert ink.any() and not ink[:, :2].any() and not ink[:2].any()
    arrow = page[:, drawing.GAP + side : drawing.GAP + step]
    assert ((arrow == 0x55).all(-1)).sum() > 2 * 3 * (drawing.ARROW - 20)
