"""Pictures of shards as the batches of a run: an endless order, this host's rows, crops and flips at random.

Shapes: B batch, S picture side in pixels.
"""

import concurrent.futures

import numpy as np
import tqdm

from itit import config as config_lib
from itit.data import order
from itit.data.blocks import Reader
from itit.data.source import Source

MAX_BYTES_IN_MEMORY = 2 << 30


class Pictures:
    """The pictures of the shards, decoded once into memory where they fit into 2 GiB, otherwise at every use.

    Args:
      flag: name of the flag that holds the pattern, for messages.
      image_size: S.
      batch_size: B of all hosts together.
      crop_from: side that pictures are read at, to be cut to S at random; 0: read at S, centre.
      random_flip: flip half of them left to right.

    Raises ValueError for an empty set, records without "image", and the first damaged record.
    """

    def __init__(self, flag, pattern, image_size, batch_size, seed, *, host_index=0, num_hosts=1, crop_from=0,
                 random_flip=False):  # fmt: skip
        if crop_from and crop_from < image_size:
            raise ValueError(f"--crop_from={crop_from}: must be at least image_size={image_size}, or 0")
        if batch_size % num_hosts:
            raise ValueError(f"--batch_size={batch_size}: must be a multiple of {num_hosts} hosts")
        self._pool = concurrent.futures.ThreadPoolExecutor(8)
        side = crop_from or image_size
        settings = config_lib.replace(config_lib.Config(), image_size=side, seed=seed)
        reader = Reader(settings.data.read_requests, settings.data.read_ahead_mib << 20)
        self._lanes = order.num_lanes([batch_size])
        self._source = Source(flag, pattern, ("picture",), settings, reader, self._lanes, num_hosts)
        if self._source.broken:
            raise self._source.broken[0]
        if self._source.forms["picture"] != "image":
            raise ValueError(f"--{flag}={pattern}: holds 'image_ids', must hold raw pictures ('image')")
        self._side, self._seed, self._flip, self._all = image_size, seed, random_flip, None
        rows = batch_size // num_hosts
        self._batch_size, self._mine = batch_size, slice(host_index * rows, (host_index + 1) * rows)
        count = len(self._source)
        if count * side * side * 3 <= MAX_BYTES_IN_MEMORY:
            loaded = self._pool.map(self._load, range(count))
            self._all = np.stack(list(tqdm.tqdm(loaded, "reading", count, unit=" pictures", leave=False)))

    def __len__(self):
        return len(self._source)

    def batch(self, step):
        """{"images": uint8 [rows of this host, S, S, 3]}, a function of (seed, step)."""
        return {"images": self._rows(order.positions(step, [self._batch_size], self._lanes)[0][self._mine])}

    def sample(self, count):
        """uint8 [count, S, S, 3], the first of the order, the same on every host."""
        return self._rows(np.arange(count, dtype=np.int64))

    def first(self, count):
        """uint8 [up to `count`, S, S, 3] as they are stored, of a set that is not cropped."""
        return self._at(np.arange(min(count, len(self))))

    def _rows(self, places):
        pictures = self._at(self._source.ids(places))
        if self._flip:
            flips = order.coins(self._seed, "vqgan", places)
            pictures = np.where(flips[:, None, None, None], pictures[:, :, ::-1], pictures)
        if pictures.shape[1] > self._side:
            pictures = np.stack([self._cut(*pair) for pair in zip(pictures, places, strict=True)])
        return np.ascontiguousarray(pictures)

    def _at(self, ids):
        return np.stack(list(self._pool.map(self._load, ids))) if self._all is None else self._all[ids]

    def _load(self, number):
        return self._source.load(number)["image"]

    def _cut(self, picture, place):
        draws = np.random.default_rng((self._seed, int(place)))
        top, left = draws.integers(0, len(picture) - self._side + 1, 2)
        return picture[top : top + self._side, left : left + self._side]
