"""Pictures of every kind to pixels."""

import io
import re
import struct
import zlib

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


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(size, depth, colour, row, *chunks):
    """A PNG of one row by hand."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(
        b"IEND", b"")  # fmt: skip


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_grey_is_white_at_any_depth(depth):
    rng = np.random.default_rng()
    levels = rng.choice(min(2**depth, 4096), 8 if depth > 2 else 2**depth, replace=False).astype(int).tolist()
    bits = "".join(f"{level:0{depth}b}" for level in levels)
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    data = png((len(levels), 1), depth, 0, row, chunk(b"tRNS", struct.pack(">H", levels[0])))
    found = np.asarray(images.to_rgb(images.open_picture(data, LIMIT)))[0]
    # Sixteen bits are read by their upper half, fewer fill the eight.
    scale = 1 / 256 if depth == 16 else 255 / (2**depth - 1)
    expected = [255, *(int(level * scale) for level in levels[1:])]
    np.testing.assert_array_equal(found, np.repeat(np.array(expected)[:, None], 3, 1))


def test_the_transparent_colour_of_sixteen_bits_is_white():
    colours = np.random.default_rng().integers(0, 200, (5, 3)) * 256 + np.arange(5)[:, None]
    colours[1] = colours[0] % 256 + np.array([[201, 202, 203]]) * 256
    data = png((5, 1), 16, 2, colours.astype(">u2").tobytes(), chunk(b"tRNS", colours[1].astype(">u2").tobytes()))
    found = np.asarray(images.to_rgb(images.open_picture(data, LIMIT)))[0]
    expected = colours // 256
    expected[1] = 255
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("number, turned", [
    (2, lambda x: x[:, ::-1]), (3, lambda x: x[::-1, ::-1]), (4, lambda x: x[::-1]),
    (5, lambda x: x.swapaxes(0, 1)), (6, lambda x: np.rot90(x, -1)),
    (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)), (8, np.rot90),
])  # fmt: skip
def test_exif_turns_the_picture(number, turned):
    picture = smooth(np.random.default_rng(), 16, 16)
    exif = Image.Exif()
    exif[0x0112] = number
    expected = turned(np.asarray(picture))
    np.testing.assert_array_equal(images.decode(encode(picture, exif=exif), 16, LIMIT), expected)


@pytest.mark.filterwarnings("ignore")  # Pillow says what it finds
def test_what_is_wrong_with_exif_never_makes_a_picture_damaged():
    picture = smooth(np.random.default_rng(), 16, 16)
    # Little endian, at 8 a list of tags: (tag, type, count, value or where it is).
    tags = {
        "a negative fraction": [(0x0112, 3, 1, 6), (0x011A, 10, 1, 50)],
        "a fraction over nothing": [(0x0112, 3, 1, 6), (0x829A, 5, 1, 58)],
        "beyond the end": [(0x0112, 3, 1, 6), (0x010F, 2, 2**31, 2**31)],
        "no such type": [(0x0112, 3, 1, 6), (0x011A, 99, 1, 50)],
    }
    numbers = struct.pack("<iiII", -1, -1, 2**32 - 1, 0)
    for cause, entries in tags.items():
        data = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
        exif = b"Exif\0\0" + (data + struct.pack("<I", 0)).ljust(50, b"\0") + numbers
        found = images.decode(encode(picture, exif=exif), 16, LIMIT)
        np.testing.assert_array_equal(found, np.rot90(np.asarray(picture), -1), cause)
    for exif in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"nothing"):
        data = encode(picture)[:33] + chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")) + encode(picture)[33:]
        np.testing.assert_array_equal(images.decode(data, 16, LIMIT), np.asarray(picture))
    exif = Image.Exif()
    exif[0x0112] = 9
    np.testing.assert_array_equal(images.decode(encode(picture, exif=exif), 16, LIMIT), np.asarray(picture))


def test_long_texts_in_a_png_are_not_read():
    rng, picture = np.random.default_rng(), smooth(np.random.default_rng(), 16, 16)
    whole, zeros = encode(picture), zlib.compress(bytes(2**21))
    texts = {
        b"zTXt": b"Comment\0\0" + zeros,
        b"tEXt": b"parameters\0" + bytes(rng.integers(32, 127, 2**21, dtype=np.uint8)),
        b"iTXt": b"workflow\0\1\0\0\0" + zeros,
        b"iCCP": b"icc\0\0" + zeros,
    }
    for kind, text in texts.items():
        for place in (33, len(whole) - 12):  # behind the header, before the end
            data = whole[:place] + chunk(kind, text) + whole[place:]
            np.testing.assert_array_equal(images.decode(data, 16, LIMIT), np.asarray(picture))
            with pytest.raises(ValueError, match="picture"):
                images.decode(data[:-40] if place == 33 else data[: place - 40], 16, LIMIT)


def test_xmp_in_a_png_still_turns_it():
    picture = smooth(np.random.default_rng(), 16, 16)
    data = encode(picture)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    data = data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) + data[33:]
    np.testing.assert_array_equal(images.decode(data, 16, LIMIT), np.asarray(picture)[::-1, ::-1])


@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_is_the_one_that_was_asked_for(monkeypatch):
    """Pillow refuses twice its own limit, and warns above it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = png((2001, 1), 1, 0, bytes(251))
    assert images.open_picture(data, 2001).size == (2001, 1) and Image.MAX_IMAGE_PIXELS == 2001
    with pytest.raises(ValueError, match="2001 x 1 pixels, above --max_image_pixels=2000"):
        images.open_picture(data, 2000)
    assert Image.MAX_IMAGE_PIXELS == 2001, "it is never lowered"


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
