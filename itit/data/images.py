"""Encoded pictures to pixels.

What a file tells beside its pixels decides nothing, except which side is up, and never makes a sound picture a damaged
one.

Shapes: S side of the picture.
"""

import contextlib
import io
import struct

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".jfif", ".jpe")  # of their files
# Of pictures of kinds that are not read.
OTHER_SUFFIXES = (".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".tga", ".pnm",
                  ".ppm", ".pgm", ".pbm", ".dng", ".cr2", ".nef", ".arw", ".exr", ".hdr", ".jpg_large")  # fmt: skip
CENTRE = (0.5, 0.5)
ORIENTATION = 0x0112  # EXIF
_TURNS = {number: turn for number, turn in enumerate(
    ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2
)}  # fmt: skip
_PNG = b"\x89PNG\r\n\x1a\n"
_UPRIGHT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts of a PNG that may tell which side is up
_LONG = 2**16  # bytes of such a text
# What multiplies the levels of a PNG as Pillow reads them, but not its transparent level.
_LEVELS = {"L;2": 85, "L;4": 17}


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
    # Pillow has a limit of its own for the whole process; here it is raised where more is asked for, and never lowered.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    # Pillow raises errors of a dozen unrelated types for damaged files.
    try:
        picture = Image.open(io.BytesIO(_without_texts(data)), formats=FORMATS)
    except Exception as error:
        raise ValueError(f"not a picture: {_one_line(error)}") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise ValueError(f"picture of {width} x {height} pixels, above --max_image_pixels={max_pixels}")
    return picture


def to_rgb(picture):
    """A PIL picture decoded, upright and in RGB. Raises ValueError where its data are damaged."""
    try:
        form = picture.tile[0].args if getattr(picture, "tile", None) else ""
        picture.load()
        return _to_rgb(_upright(picture), form)
    except Exception as error:
        raise ValueError(f"picture does not decode: {_one_line(error)}") from None


def to_square(picture, image_size, place=CENTRE, scale=1.0):
    """A PIL picture as uint8 [S, S, 3], as `decode` does it. Raises ValueError where its data are damaged."""
    picture = to_rgb(picture)
    width, height = picture.size
    side = min(width, height) * scale
    left, top = (width - side) * place[0], (height - side) * place[1]
    if side == image_size:  # cut out at whole pixels: it stays as sharp as it is
        left, top = int(left), int(top)
        return np.asarray(picture)[top : top + image_size, left : left + image_size]
    # The crop comes first, so that a very long picture is never enlarged as a whole.
    box = (left, top, min(width, left + side), min(height, top + side))
    return np.asarray(picture.resize((image_size, image_size), Image.Resampling.BICUBIC, box))


def _one_line(error):
    # Pillow names the buffer's address, which differs from run to run.
    return str(error).replace("\n", " ").split(" <_io")[0] or type(error).__name__


def _without_texts(data):
    """A PNG without the chunks that Pillow would unpack, and refuse where they are long: texts, whose pixels are sound
    all the same (tools that draw pictures store their settings so), and the colour profile. Anything else as it is."""
    if not data.startswith(_PNG):
        return data
    kept, start, place = [], 0, len(_PNG)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        content = place + 8
        short = length <= _LONG and data.startswith(_UPRIGHT, content)
        if kind in (b"iTXt", b"zTXt", b"tEXt", b"iCCP") and not short:
            kept.append(data[start:place])
            start = content + length + 4
        place = content + length + 4
    return b"".join([*kept, data[start:]]) if kept else data


def _upright(picture):
    """A PIL picture turned as its EXIF tag says. Other tags are not looked at, and one that cannot be read turns
    nothing. A picture that stands already is not copied."""
    turn = None
    with contextlib.suppress(Exception):  # of what may be wrong with EXIF, Pillow raises a dozen errors
        turn = _TURNS.get(picture.getexif().get(ORIENTATION))
    if turn is None:
        return picture
    turned = picture.transpose(Image.Transpose[turn])
    turned.info = picture.info  # where its transparency is
    return turned


def _to_rgb(picture, form=""):
    """`form`: how a PNG holds its levels (Pillow's raw mode), by which its transparent level is understood."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I"):
        # Pillow clips 16 bits at 255 instead of scaling them.
        levels = np.asarray(picture)
        grey = (levels >> 8).astype(np.uint8)
        if isinstance(clear, int):
            grey = np.where(levels == clear, np.uint8(255), grey)
        return Image.fromarray(grey).convert("RGB")
    if form == "RGB;16B" and isinstance(clear, tuple):  # read as 8 bits; that is all that can be compared
        picture.info["transparency"] = tuple(level >> 8 for level in clear)
    elif form in _LEVELS and isinstance(clear, int):
        picture.info["transparency"] = clear * _LEVELS[form]
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
