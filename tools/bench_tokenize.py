"""`python -m tools.bench_tokenize --input=SHARDS [--input=gs://...] --vqgan=DIR [--rounds=5]`: ids beside bare parts.

Makes ids of all pictures of each --input, as `tools.tokenize` does it and into a folder beside them that goes again; in
turns with it, decodes some hundred of the same pictures from memory on as many threads, and gives one batch to the
tokenizer again and again. Prints pictures/s and processor time of each, and how near the command comes to the slower of
its parts. Where the tokenizer runs on the processor, which decodes, too, both parts share it: there the sum of their
times is what the command is held against.

--device_ms in the place of --vqgan: a device that takes so many milliseconds for 64 pictures, and no processor. It
shows what a host does in front of an accelerator that is not there.
"""

import concurrent.futures
import os
import statistics
import time

import numpy as np
from absl import flags

from itit import flags as flags_lib
from itit import storage
from itit.config import Config
from itit.data import blocks, records, streams
from tools.data import tokenizing
from tools.timing.decoding import decode_speed, timed

NUM_PICTURES, NUM_BATCHES = 512, 8  # of the parts, in a round


class StandIn:
    """In the place of `tokenizing.Pictures`: one batch after the other, each a pause."""

    def __init__(self, milliseconds, image_size):
        self._seconds, self._size = milliseconds / 1e3, image_size
        self._device = concurrent.futures.ThreadPoolExecutor(1)

    def decode(self, data, key):
        return tokenizing.views(data, key, self._size, 10**9, 1, False)

    def begin(self, pixels):
        pause = self._device.submit(time.sleep, self._seconds * len(pixels) / tokenizing.BATCH_SIZE)
        return lambda: (pause.result(), np.zeros((len(pixels), (self._size // 16) ** 2), np.int64))[1]


def sample_pictures(pattern):
    """The first encoded pictures of shards."""
    found = []
    for path in storage.glob(pattern):
        table = blocks.Table([path], Config().data.block_bytes)
        for number in range(len(table.size)):
            block, count = table.read(number), int(table.first[number + 1] - table.first[number])
            found += [records.decode_example(block.payload(n))["image"][0] for n in range(count)]
            if len(found) >= NUM_PICTURES:
                return found[:NUM_PICTURES]
    return found


def tokenize_speed(tokenizer, pictures):
    """`Speed` of one batch, given again and again, the next before the ids of one are waited for."""
    pixels = [tokenizer.decode(data, b"")[0] for data in pictures[: tokenizing.BATCH_SIZE]]
    tokenizer.begin(pixels)()

    def work():
        waits = [tokenizer.begin(pixels) for _ in range(NUM_BATCHES)]
        return [wait() for wait in waits]

    return timed(work, NUM_BATCHES * len(pixels))


def command_speed(pattern, settings, tokenizers):
    """`Speed` of the pictures of all shards, from opening the first to storing the last."""
    sources = storage.glob(pattern)
    folder = storage.join(os.path.dirname(sources[0]), ".bench_tokenize")
    storage.make_dirs(folder)
    pairs = [(source, storage.join(folder, f"{number}.tfrecord")) for number, source in enumerate(sources)]
    count = sum(len(blocks.Table([source], Config().data.block_bytes)) for source in sources)
    try:
        return timed(lambda: list(tokenizing.convert(settings, tokenizers, pairs)), count)
    finally:
        storage.remove_tree(folder)


def measure(patterns, settings, tokenizers, num_rounds):
    """For each round `Speed` of decoding, of tokenizing, and of the command on each pattern."""
    pictures = sample_pictures(patterns[0])
    with concurrent.futures.ThreadPoolExecutor(settings.num_workers or streams.num_workers(Config())) as pool:
        return [
            (decode_speed(pictures, pool), tokenize_speed(tokenizers.image, pictures),
             *(command_speed(pattern, settings, tokenizers) for pattern in patterns))
            for _ in range(num_rounds)
        ]  # fmt: skip


def table(patterns, found, shared):
    """The lines to print. `shared`: decoding and tokenizing share the processor."""
    lines = [f"{'':60}{'best':>10}{'median':>10}"]

    def line(label, values, best=max):
        found = best if isinstance(best, float) else best(values)
        lines.append(f"{label:60}{found:>10.4g}{statistics.median(values):>10.4g}")
        return found

    def bound(decoding, tokenizing):
        return 1 / (1 / decoding + 1 / tokenizing) if shared else min(decoding, tokenizing)

    sides = list(zip(*found, strict=True))
    names = ["decoding", "tokenizing", *(f"tokenize {pattern}" for pattern in patterns)]
    rates = [line(f"pictures/s, {name}", [speed.rate for speed in side])
             for name, side in zip(names, sides, strict=True)]  # fmt: skip
    costs = [line(f"processor ms a picture, {name}", [1e3 * speed.cost for speed in side], min)
             for name, side in zip(names, sides, strict=True)]  # fmt: skip
    # The best of the quotients would be that of the round in which the parts were disturbed most.
    for number, pattern in enumerate(patterns, 2):
        values = [speeds[number].rate / bound(speeds[0].rate, speeds[1].rate) for speeds in found]
        what = "both parts" if shared else "the slower part"
        line(f"{pattern} over {what}, by time", values, rates[number] / bound(*rates[:2]))
        values = [(speeds[0].cost + speeds[1].cost) / speeds[number].cost for speeds in found]
        line(f"{pattern} over both parts, by processor time", values, sum(costs[:2]) / costs[number])
    return lines


def define_flags():
    flags.DEFINE_multi_string(
        "input", None, "TFRecord shards of pictures; one may be given several times.", required=True
    )
    flags.DEFINE_float("device_ms", 0, "Milliseconds of a stand-in for the tokenizer, for 64 pictures.", lower_bound=0)
    flags.DEFINE_integer("image_size", 256, "Side of its pictures.", lower_bound=16)
    flags.DEFINE_integer("rounds", 5, "Rounds of all.", lower_bound=1)
    flags_lib.define(tokenizing.Settings())


def main(_):
    flag, settings = flags.FLAGS, flags_lib.from_flags(tokenizing.Settings())
    if bool(settings.vqgan) == bool(flag.device_ms):
        raise ValueError("--vqgan or --device_ms: give one of them")
    if flag.device_ms:
        tokenizers, shared = tokenizing.Tokenizers(StandIn(flag.device_ms, flag.image_size)), False
    else:
        tokenizers = tokenizing.tokenizers_of(settings)
        shared = tokenizers.image.device.type == "cpu"
    found = measure(flag.input, settings, tokenizers, flag.rounds)
    print(f"{os.cpu_count()} cores, {flag.rounds} rounds")
    print("\n".join(table(flag.input, found, shared)))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
