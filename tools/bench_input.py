"""`python -m tools.bench_input [--hosts=1] [--batches=20] [--rounds=5] --flagfile=FILE [--flag=value]`: input alone.

Makes the batches of a training run as the run does, from disk or gs://, and throws them away; beside it, in turns,
decodes some hundred of the same pictures from memory on as many threads, and nothing else. Prints records/s, MB/s, and
the first over the second: what is left of bare decoding after reading, checking, cutting, tokenizing and stacking.

Bare decoding makes `np.asarray(Image.open(...).convert("RGB"))` of a file's bytes: no resizing, no cutting out. Give it
a machine that does nothing else; where others work on it, too, the ratio by processor time is the one to go by, median
of many short rounds.
"""

import concurrent.futures
import os
import statistics
import time

from absl import flags as absl_flags

from itit import flags
from itit.data.prefetch import prefetch
from itit.data.streams import Streams, num_workers
from itit.tasks import of_stream
from itit.training.taken import settle
from tools.timing.decoding import decode_speed, timed

NUM_PICTURES = 512  # decoded from memory in a round


def sample_pictures(streams):
    """Encoded pictures of the run's first steps, in the proportion in which its streams have them."""
    found, step = [], 0
    while len(found) < NUM_PICTURES:
        before, rows = len(found), streams.rows(step)
        for name, source in streams.sources.items():
            if source.forms.get("picture") == "image":
                places = [place for task in of_stream(name) for place in rows.get(task, ())]
                found += [source.features(record_id)["image"][0] for record_id in source.ids(places).tolist()]
        if len(found) == before:
            break
        step += 1
    return found[:NUM_PICTURES]


def input_speed(streams, start_step, num_batches, depth):
    """Of batches, from the moment when the first one is there."""
    batches = prefetch(streams, start_step, depth)
    next(batches)
    speed = timed(lambda: [next(batches).clear() for _ in range(num_batches)], num_batches)
    batches.close()
    return speed


def measure(streams, config, num_batches, num_rounds):
    """`Speed` of batches and of bare pictures, or None where there are none, of each round."""
    found, pictures = [], sample_pictures(streams)
    with concurrent.futures.ThreadPoolExecutor(max(1, num_workers(config))) as pool:
        for number in range(num_rounds):
            speed = input_speed(streams, number * num_batches, num_batches, config.data.prefetch)
            found.append((speed, decode_speed(pictures, pool) if pictures else None))
    return found


def table(streams, found):
    """The lines to print."""
    rows = {name: sum(len(streams.rows(0).get(task, ())) for task in of_stream(name)) for name in streams.sources}
    pictures = sum(rows[name] for name, source in streams.sources.items() if source.forms.get("picture") == "image")
    megabytes = sum(rows[name] * source.mean_bytes for name, source in streams.sources.items()) / 1e6
    batches, bare = zip(*found, strict=True)
    lines = [f"{'':44}{'best':>10}{'median':>10}"]

    def line(label, values, best=max):
        lines.append(f"{label:44}{best(values):>10.4g}{statistics.median(values):>10.4g}")
        return best(values)

    line("batches/s", [speed.rate for speed in batches])
    line("records/s", [speed.rate * sum(rows.values()) for speed in batches])
    line("MB/s of records", [speed.rate * megabytes for speed in batches])
    if pictures:
        rate = line("pictures/s", [speed.rate * pictures for speed in batches])
        rate /= line("pictures/s, bare decoding", [speed.rate for speed in bare])
        cost = line("processor ms a picture", [1e3 * speed.cost / pictures for speed in batches], min)
        cost = line("processor ms a picture, bare decoding", [1e3 * speed.cost for speed in bare], min) / cost
        # The best of the quotients would be that of the round in which bare decoding was disturbed most.
        line("input over bare decoding, by time", [a.rate * pictures / b.rate for a, b in found], lambda _: rate)
        line(
            "input over bare decoding, by processor time",
            [b.cost * pictures / a.cost for a, b in found],
            lambda _: cost,
        )
    return lines


def define_flags():
    flags.define()
    absl_flags.DEFINE_integer("hosts", 1, "Hosts that share the batches; this is the first.", lower_bound=1)
    absl_flags.DEFINE_integer("batches", 20, "Batches timed in a round.", lower_bound=1)
    absl_flags.DEFINE_integer("rounds", 5, "Rounds of both.", lower_bound=1)


def main(_):
    given, config = absl_flags.FLAGS, settle(flags.from_flags(), flags.places())
    start = time.perf_counter()
    streams = Streams(config, 0, given.hosts)
    print(f"{streams.describe()}\nopened in {time.perf_counter() - start:.1f} s; host 1 of {given.hosts}, "
          f"{os.cpu_count()} cores, {given.rounds} rounds of {given.batches} batches", flush=True)  # fmt: skip
    found = measure(streams, config, given.batches, given.rounds)
    print("\n".join(table(streams, found)))
    megabytes = streams.reader.num_bytes / 1e6
    print(f"read: {streams.reader.num_reads} blocks, {megabytes:.1f} MB")


if __name__ == "__main__":
    define_flags()
    flags.run_main(main)
