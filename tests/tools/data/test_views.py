"""Crops and mirrored pictures, against Pillow by hand."""

import io

import numpy as np
from PIL import Image

from itit.data import images
from tools.data import views


def test_each_view_is_the_crop_that_it_says(monkeypatch):
    rng, file = np.random.default_rng(), io.BytesIO()
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    found = views.views(file.getvalue(), b"a", 16, 10**6, 5, True)
    assert len(found) == 10
    np.testing.assert_array_equal(found[0], images.decode(file.getvalue(), 16, 10**6))
    for number, (place, scale) in enumerate(views.squares(b"a", 5)):
        side = 40 * scale
        left, top = (60 - side) * place[0], (40 - side) * place[1]
        by_hand = Image.fromarray(pixels).resize(
            (16, 16), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
        )
        np.testing.assert_array_equal(found[2 * number], by_hand)
        np.testing.assert_array_equal(found[2 * number + 1], np.asarray(by_hand)[:, ::-1])
    assert len(views.views(file.getvalue(), None, 16, 10**6, 1, False)) == 1


def test_squares_are_drawn_from_the_id_and_lie_inside():
    key = np.random.default_rng().bytes(8)
    found = views.squares(key, 50)
    assert found[:10] == views.squares(key, 10) and found[1:] != views.squares(key + b"x", 50)[1:]
    assert found[0] == (images.CENTRE, 1.0) and len(set(found)) == 50
    assert all(views.MIN_SCALE <= scale <= 1 and min(place) >= 0 and max(place) <= 1 for place, scale in found)
    picture = Image.new("RGB", (301, 299))
    for place, scale in [*found, ((1.0, 1.0), 0.8123456789), ((1.0, 1.0), 1.0)]:
        images.to_square(picture, 8, place, scale)  # Pillow refuses a box that leaves the picture
