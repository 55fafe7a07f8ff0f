"""Pictures of every kind to pixels."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from itit.data import images

LIMIT = 10**6


def encode(picture, format="PNG", **options):
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def smooth(rng, width, height):
    """A random picture without fine detail, uint8 [height, width, 3]."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def test_a_square_of_the_right_size_is_untouched():
    rng = np.random.default_rng()
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.decode(encode(Image.fromarray(pixels)), 32, LIMIT), pixels)


@pytest.mark.parametrize("width,height", [(51, 32), (32, 40), (32, 33)])
def test_the_right_short_side_is_cut_at_whole_pixels(width, height):
    pixels = np.random.default_rng().integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top = (width - 32) // 2, (height - 32) // 2
    found = images.decode(encode(Image.fromarray(pixels)), 32, LIMIT)
    np.testing.assert_array_equal(found, pixels[top : top + 32, left : left + 32])


def test_a_picture_that_is_open_is_treated_as_its_file():
    turned = Image.Exif()
    turned[0x0112] = 6
    for mode, options in (("RGB", {"exif": turned}), ("RGBA", {}), ("P", {}), ("L", {})):
        picture = smooth(np.random.default_rng(), 90, 64).convert(mode)
        data = encode(picture, **options)
        np.testing.assert_array_equal(
            images.to_square(Image.open(io.BytesIO(data)), 32), images.decode(data, 32, LIMIT)
        )


# Sizes that put the resized picture's centre square on whole pixels, so that the two orders agree.
@pytest.mark.parametrize("width,height", [(120, 64), (64, 120), (64, 68), (300, 32)])
def test_short_side_resized_and_centre_cut(width, height):
    picture, size = smooth(np.random.default_rng(), width, height), 32
    scale = size / min(width, height)
    whole = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    expected = np.asarray(whole.crop((left, top, left + size, top + size)), float)
    found = images.decode(encode(picture), size, LIMIT)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    assert np.abs(found - expected).mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_any_mode_becomes_rgb(mode):
    picture = smooth(np.random.default_rng(), 16, 16)
    converted = picture.convert("L").convert(mode) if mode in ("1", "LA") else picture.convert(mode)
    data = encode(converted, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 100} if mode == "CMYK" else {}))
    expected = np.asarray(converted.convert("RGB"), float)
    assert np.abs(images.decode(data, 16, LIMIT) - expected).mean() < 4


def test_sixteen_bits_are_scaled():
    levels = np.random.default_rng().integers(0, 2**16, (8, 8)).astype(np.uint16)
    found = images.decode(encode(Image.fromarray(levels)), 8, LIMIT)
    np.testing.assert_array_equal(found, np.repeat((levels // 256)[..., None], 3, -1))


def test_transparent_parts_are_white():
    pixels = np.random.default_rng().integers(0, 256, (8, 8, 4), dtype=np.uint8)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(images.decode(encode(Image.fromarray(pixels)), 8, LIMIT) - expected).max() <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (images.decode(encode(palette, transparency=1), 8, LIMIT) == 255).all()


def test_exif_turns_the_picture():
    picture = smooth(np.random.default_rng(), 16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = np.rot90(np.asarray(picture), -1)
    np.testing.assert_array_equal(images.decode(encode(picture, exif=exif), 16, LIMIT), expected)


def test_size_is_refused_by_the_header_alone(monkeypatch):
    data = encode(Image.new("RGB", (300, 200)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ValueError, match=re.escape("300 x 200 pixels, above --max_image_pixels=59999")):
        images.decode(data, 8, 59_999)


def test_a_very_long_picture_is_not_enlarged_as_a_whole():
    assert images.decode(encode(Image.new("RGB", (1, 100_000), "red")), 256, LIMIT).shape == (256, 256, 3)


def test_damage_is_one_clear_line():
    rng = np.random.default_rng()
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for data in (b"", rng.bytes(500), encode(noise)[:2000], encode(noise, "JPEG")[:1000], encode(noise, "TIFF")):
        with pytest.raises(ValueError) as caught:
            images.decode(data, 16, LIMIT)
        assert "\n" not in str(caught.value) and "0x" not in str(caught.value)
    for _ in range(200):
        data = bytearray(encode(noise, "JPEG"))
        for position in rng.integers(0, len(data), 5):
            data[position] ^= int(rng.integers(1, 256))
        try:
            assert images.decode(bytes(data), 16, LIMIT).shape == (16, 16, 3)
        except ValueError:
            continue
