"""tools.drawing: sheets beneath each other, PNG files, the loss curves of a run."""

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from itit.metrics import Metrics
from tools import drawing


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
