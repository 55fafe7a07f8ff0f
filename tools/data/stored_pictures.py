"""Pictures as they are stored: bounded, upright, RGB, resized once, encoded once."""

import dataclasses
import io

from PIL import Image

from itit.config import DataConfig, knob
from itit.data import images

FORMATS = {"jpeg": "JPEG", "webp": "WEBP"}


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """How pictures are stored."""

    short_side: int = knob(256, "Pixels that the short side of a picture is resized to (bicubic); 0: not resized.")
    enlarge: bool = knob(False, "Enlarge pictures whose short side is shorter.")
    image_format: str = knob("jpeg", "How pictures are stored.", tuple(FORMATS))
    image_quality: int = knob(95, "Quality of JPEG or WebP, 1 to 100; 0: the bytes of the picture as they are.")
    max_image_pixels: int = knob(DataConfig.max_image_pixels, "Pictures with more pixels than this count as damaged.")

    def check(self):
        """Raises ValueError naming the flag."""
        if not 0 <= self.image_quality <= 100:
            raise ValueError(f"--image_quality={self.image_quality}: must be from 0 to 100")
        if self.short_side < 0 or self.max_image_pixels < 1:
            raise ValueError(f"--short_side={self.short_side} --max_image_pixels={self.max_image_pixels}: "
                             "must not be negative, and at least 1")  # fmt: skip


def store(data, settings):
    """The bytes that a record holds, of an encoded picture. Every picture is decoded whole, so that none is damaged.

    Raises ValueError with the cause.
    """
    picture = images.to_rgb(images.open_picture(data, settings.max_image_pixels))
    if not settings.image_quality:
        return data
    picture, out = _resize(picture, settings), io.BytesIO()
    try:
        picture.save(out, FORMATS[settings.image_format], quality=settings.image_quality)
    except (OSError, ValueError) as error:  # of a side that the format does not have
        raise ValueError(f"picture of {picture.width} x {picture.height} pixels is not stored: {error}") from None
    return out.getvalue()


def _resize(picture, settings):
    side, short = settings.short_side, min(picture.size)
    if not side or side == short or side > short and not settings.enlarge:
        return picture
    size = tuple(max(1, round(edge * side / short)) for edge in picture.size)
    if size[0] * size[1] > settings.max_image_pixels:
        raise ValueError(f"{size[0]} x {size[1]} pixels after resizing, above --max_image_pixels")
    return picture.resize(size, Image.Resampling.BICUBIC)
