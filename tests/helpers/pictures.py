"""What the tests of tokenizers share: shards of small pictures."""

import io

import numpy as np
from PIL import Image

from itit.data import records, scenes


def write_shards(folder, counts, text=None):
    """Shards raw-0.tfrecord, ... of 16x16 pictures with keys; returns all (picture, features) in order."""
    rng, written = np.random.default_rng(), []
    for shard, count in enumerate(counts):
        with records.RecordWriter(str(folder / f"raw-{shard}.tfrecord")) as writer:
            for number in range(count):
                data = io.BytesIO()
                picture = scenes.render(scenes.sample(rng, ("seen",)), rng)[::4, ::4]
                Image.fromarray(np.ascontiguousarray(picture)).save(data, "PNG")
                features = {"key": f"{shard}/{number}", "image": data.getvalue()} | ({"text": text} if text else {})
                writer.write(records.encode_example(features))
                written.append((picture, features))
    return written
