"""Bare decoding and encoding of pictures, beside which what surrounds them is measured."""

import functools
import io
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from tools.data.sources.item import MAX_PICTURE
from tools.data.stored_pictures import store


def decode(data):
    """Bytes -> uint8 [height, width, 3]: no resizing, no cutting out."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Speed(NamedTuple):
    """Of batches or of pictures: how many a second, and seconds of all processors for one."""

    rate: float
    cost: float


def timed(work, count):
    """`Speed` of `work()`, which makes `count` of them in this process."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return Speed(count / (time.perf_counter() - start), (time.process_time() - used) / count)


def decode_speed(pictures, pool):
    """`Speed` of decoding a list of bytes on the threads of a pool."""
    return timed(lambda: list(pool.map(lambda data: decode(data).size, pictures)), len(pictures))  # nothing is kept


def store_speed(settings, images, pool, num_workers):
    """`Speed` of what a record holds of pictures (see stored_pictures.py), on all processes of a pool at a time.

    Args:
      settings: PictureSettings.
      images: list of `Blob`s, which each process reads before.
    """
    shares = [images[start::num_workers] for start in range(num_workers)]
    speeds = list(pool.map(functools.partial(_store, settings), shares))
    return Speed(sum(speed.rate for speed in speeds), sum(speed.cost for speed in speeds) / num_workers)


def _store(settings, images):
    pictures = [image.read(MAX_PICTURE) for image in images]
    return timed(lambda: [store(data, settings) and None for data in pictures], len(pictures))
