"""Encoded pictures to pixels.

Shapes: S side of the picture.
"""

import io

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")  # of their files
CENTRE = (0.5, 0.5)
ORIENTATION = 0x0112  # EXIF


def decode(data, image_size, max_pixels, place=CENTRE, scale=1.0):
    """A JPEG, PNG, WebP, GIF or BMP as a square of RGB pixels.

    Any mode becomes RGB (transparent parts white), the picture is turned as its EXIF tag says, a square is cut out, by
    default the whole short side in the centre, and resized to S (bicubic, antialiased).

    Args:
      data: the encoded picture.
      image_size: S.
      max_pixels: width times height above this is refused, by the header alone, before anything is allocated.
      place: where the square lies in the room that it has, from left (0) to right (1) and from top to bottom.
      scale: side of the square over the picture's short side, above 0 and at most 1.

    Returns:
      uint8 [S, S, 3].

    Raises:
      ValueError: with the cause.
    """
    return to_square(open_picture(data, max_pixels), image_size, place, scale)


def open_picture(data, max_pixels):
    """The PIL picture of encoded data, its pixels not decoded yet. Raises ValueError as `decode` does."""
    # Pillow raises errors of a dozen unrelated types for damaged files.
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"not a picture: {_one_line(error)}") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"picture of {width} x {height} pixels, above --max_image_pixels={max_pixels}")
    return picture


def to_rgb(picture):
    """A PIL picture decoded, upright and in RGB. Raises ValueError where its data are damaged."""
    try:
        picture.load()
        turned = picture.getexif().get(ORIENTATION, 1) != 1  # exif_transpose copies what it need not turn
        return _to_rgb(ImageOps.exif_transpose(picture) if turned else picture)
    except Exception as error:
        raise ValueError(f"picture does not decode: {_one_line(error)}") from None


def to_square(picture, image_size, place=CENTRE, scale=1.0):
    """A PIL picture as uint8 [S, S, 3], as `decode` does it. Raises ValueError where its data are damaged."""
    return np.asarray(_resize(to_rgb(picture), image_size, place, scale))


def _one_line(error):
    # Pillow names the buffer's address, which differs from run to run.
    return str(error).replace("\n", " ").split(" <_io")[0] or type(error).__name__


def _to_rgb(picture):
    if picture.mode.startswith("I"):
        # Pillow clips 16 bits at 255 instead of scaling them.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _resize(picture, image_size, place, scale):
    """The crop comes first, so that a very long picture is never enlarged as a whole. A square that has the size
    already is cut out at whole pixels and stays as sharp as it is."""
    width, height = picture.size
    side = min(width, height) * scale
    left, top = (width - side) * place[0], (height - side) * place[1]
    if side == image_size:
        return picture.crop((int(left), int(top), int(left) + image_size, int(top) + image_size))
    box = (left, top, min(width, left + side), min(height, top + side))
    return picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
