"""Several crops of a picture, each also mirrored where asked: which ones, a pure function of the picture's id.

Shapes: S side of a picture.
"""

import hashlib

import numpy as np

from itit.data import images

MIN_SCALE = 0.8  # of a crop's side to the picture's short side


def squares(key, num_crops):
    """[(place, scale)] of the crops of one picture, as `images.decode` takes them: the one that training makes, then
    others of a side from MIN_SCALE to the whole, drawn from the id (bytes)."""
    found = [(images.CENTRE, 1.0)]
    for number in range(1, num_crops):
        digest = hashlib.blake2b(key + b"#%d" % number, digest_size=8).digest()
        left, top, scale = np.random.default_rng(int.from_bytes(digest, "little")).uniform(size=3).tolist()
        found.append(((left, top), MIN_SCALE + (1 - MIN_SCALE) * scale))
    return found


def views(data, key, image_size, max_pixels, num_crops, flip):
    """list of uint8 [S, S, 3]: each crop, and with `flip` each mirrored right after it. Raises ValueError as
    `images.decode` does."""
    picture, found = images.to_rgb(images.open_picture(data, max_pixels)), []
    for place, scale in squares(key or b"", num_crops):
        pixels = images.to_square(picture, image_size, place, scale)
        found += [pixels, np.ascontiguousarray(pixels[:, ::-1])] if flip else [pixels]
    return found
