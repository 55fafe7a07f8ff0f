"""Encoded pictures to pixels.

Shapes: S side of the picture.
"""

import io

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ORIENTATION = 0x0112  # EXIF


def decode(data, image_size, max_pixels):
    """A JPEG, PNG, WebP, GIF or BMP as a square of RGB pixels.

    Any mode becomes RGB (transparent parts white), the picture is turned as its EXIF tag says, its short side resized
    to S (bicubic, antialiased) and its centre cut out.

    Args:
      data: the encoded picture.
      image_size: S.
      max_pixels: width times height above this is refused, by the header alone, before anything is allocated.

    Returns:
      uint8 [S, S, 3].

    Raises:
      ValueError: with the cause.
    """
    # Pillow raises errors of a dozen unrelated types for damaged files.
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"not a picture: {_one_line(error)}") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"picture of {width} x {height} pixels, above --max_image_pixels={max_pixels}")
    return to_square(picture, image_size)


def to_square(picture, image_size):
    """A PIL picture as uint8 [S, S, 3], as `decode` does it. Raises ValueError where its data are damaged."""
    try:
        turned = picture.getexif().get(ORIENTATION, 1) != 1
        # Each of these would copy a picture that needs nothing.
        picture = ImageOps.exif_transpose(picture) if turned else picture
        return np.asarray(_resize(_to_rgb(picture), image_size))
    except Exception as error:
        raise ValueError(f"picture does not decode: {_one_line(error)}") from None


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


def _resize(picture, image_size):
    """The crop comes first, so that a very long picture is never enlarged as a whole. One that has the size already is
    cut at whole pixels and stays as sharp as it is."""
    width, height = picture.size
    short = min(width, height)
    if short == image_size:
        left, top = (width - short) // 2, (height - short) // 2
        return picture.crop((left, top, left + short, top + short))
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    return picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
