"""tools.scoring.curves: the losses of a run as a picture."""

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from itit.training.metrics import Metrics
from tools.scoring import curves


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
    curves.draw_curves(str(tmp_path), str(tmp_path / "curves.png"))
    assert drawn.keys() == losses.keys()
    for name, (steps, values) in drawn.items():
        assert steps == [0, 10, 20, 30, 40] and np.allclose(values, losses[name])
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
    assert picture.shape[:2] == (550, 990)
    assert (np.ptp(picture, axis=2) > 60).any()  # coloured lines


def test_without_losses_there_are_no_curves(tmp_path, capsys):
    for make in (lambda: None, lambda: (tmp_path / "tensorboard").mkdir(), lambda: Metrics(str(tmp_path), 9).close()):
        make()
        assert not curves.draw_curves(str(tmp_path), str(tmp_path / "curves.png"))
        assert capsys.readouterr().out == f"{tmp_path}: no losses in tensorboard: no {tmp_path}/curves.png\n"
        assert not (tmp_path / "curves.png").exists()
