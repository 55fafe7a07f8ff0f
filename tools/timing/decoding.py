"""Bare decoding of pictures, beside which what surrounds it is measured."""

import io
import time
from typing import NamedTuple

import numpy as np
from PIL import Image


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


def bare_speed(pictures, pool):
    """`Speed` of decoding a list of bytes on the threads of a pool."""
    return timed(lambda: list(pool.map(lambda data: decode(data).size, pictures)), len(pictures))  # nothing is kept
