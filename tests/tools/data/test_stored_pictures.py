"""Pictures as they are stored, against Pillow by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from tools.data.stored_pictures import PictureSettings, store


def encoded(width, height, form="PNG", **options):
    # Smooth, so that JPEG keeps it.
    rng = np.random.default_rng()
    coarse = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
    data = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(data, form, **options)
    return data.getvalue()


@pytest.mark.parametrize("size, side, want", [
    ((90, 60), 30, (45, 30)), ((61, 200), 30, (30, 98)), ((40, 40), 40, (40, 40)), ((90, 60), 0, (90, 60)),
    ((20, 30), 64, (20, 30)),
])  # fmt: skip
def test_resized_once_by_the_short_side_and_never_enlarged(size, side, want):
    data = encoded(*size)
    found = Image.open(io.BytesIO(store(data, PictureSettings(short_side=side, image_quality=90))))
    assert found.format == "JPEG" and found.mode == "RGB" and found.size == want
    by_hand, file = Image.open(io.BytesIO(data)).resize(want, Image.Resampling.BICUBIC), io.BytesIO()
    by_hand.save(file, "JPEG", quality=90)
    assert store(data, PictureSettings(short_side=side, image_quality=90)) == file.getvalue()
    assert np.abs(np.asarray(found, int) - np.asarray(by_hand, int)).mean() < 6


def test_enlarged_where_asked_and_no_further_than_allowed():
    settings = PictureSettings(short_side=50, enlarge=True, image_format="webp", max_image_pixels=20_000)
    found = Image.open(io.BytesIO(store(encoded(20, 30), settings)))
    assert found.format == "WEBP" and found.size == (50, 75)
    with pytest.raises(ValueError, match="50 x 500 pixels after resizing"):
        store(encoded(20, 200), settings)


def test_quality_0_keeps_the_bytes_of_what_decodes():
    data = encoded(90, 60, "JPEG")
    assert store(data, PictureSettings(short_side=30, image_quality=0)) == data
    for damaged in (data[: len(data) // 2], b"", b"GIF89a", data[:2] + b"\0" * 400):
        with pytest.raises(ValueError, match="picture"):
            store(damaged, PictureSettings(image_quality=0))


def test_turned_by_its_tag_and_in_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter
    found = Image.open(io.BytesIO(store(encoded(90, 60, "JPEG", exif=exif), PictureSettings(short_side=30))))
    assert found.size == (30, 45) and not found.getexif().get(0x0112)
    file = io.BytesIO()
    Image.new("LA", (40, 40), (0, 0)).save(file, "PNG")  # black, all of it transparent
    assert np.asarray(Image.open(io.BytesIO(store(file.getvalue(), PictureSettings(short_side=30))))).min() > 250


def test_pixels_are_bounded_before_they_are_decoded():
    file = io.BytesIO()
    Image.new("1", (9_000, 8_000)).save(file, "PNG")
    with pytest.raises(ValueError, match="9000 x 8000 pixels, above --max_image_pixels"):
        store(file.getvalue(), PictureSettings())
    with pytest.raises(ValueError, match="is not stored"):
        store(encoded(17_000, 1), PictureSettings(short_side=0, image_format="webp"))


def test_settings_name_the_flag():
    for settings, flag in ((dict(image_quality=101), "--image_quality=101"), (dict(short_side=-1), "--short_side=-1")):
        with pytest.raises(ValueError, match=flag):
            PictureSettings(**settings).check()
