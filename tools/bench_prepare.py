"""`python -m tools.bench_prepare SOURCE --output=DIR ... [--rounds=3]`: prepare beside bare decoding and encoding.

Prepares a source with the flags of `tools.prepare` into DIR, which must not be there and goes again after each round;
in turns with it, as many processes decode, resize and encode some of its pictures from memory, and nothing else. Prints
pictures/s, processor time, and the first over the second: what is left after listing, reading, passing on and writing.
"""

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import time

from absl import flags

from itit import flags as flags_lib
from itit import storage, usage
from tools.data import preparing
from tools.data.sources import SOURCES, source_of
from tools.data.sources.item import Item, everything
from tools.timing.decoding import Speed, store_speed

NUM_PICTURES = 256  # of each process, in a round


def command_speed(name, source, settings):
    """`Speed` of a whole preparation, by its records with pictures."""
    start, used = time.perf_counter(), _processor_time()
    found = preparing.run(name, source, settings)
    seconds, used = time.perf_counter() - start, _processor_time() - used
    count = sum(split["records"] for split in found["splits"].values() if "image" in split["schema"])
    storage.remove_tree(settings.output)
    return Speed(count / seconds, used / count)


def _processor_time():
    """Of this process and of those that it has started and that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def measure(name, source, settings, num_rounds):
    """`Speed` of the command and of bare pictures, of each round."""
    count = settings.num_workers
    items = (item for item in everything(source) if isinstance(item, Item) and item.image)
    images, found = [item.image for item in itertools.islice(items, count * NUM_PICTURES)], []
    with concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        store_speed(settings, images, pool, count)  # the processes begin
        for _ in range(num_rounds):
            found.append((command_speed(name, source, settings), store_speed(settings, images, pool, count)))
    return found


def table(found):
    """The lines to print."""
    lines = [f"{'':44}{'best':>10}{'median':>10}"]

    def line(label, values, best):
        lines.append(f"{label:44}{best:>10.4g}{statistics.median(values):>10.4g}")
        return best

    rates, costs = {}, {}
    for what, speeds in zip(("prepare", "bare"), zip(*found, strict=True), strict=True):
        values = [speed.rate for speed in speeds]
        rates[what] = line(f"pictures/s, {what}", values, max(values))
        values = [1e3 * speed.cost for speed in speeds]
        costs[what] = line(f"processor ms a picture, {what}", values, min(values))
    # The best of the quotients would be that of the round in which bare encoding was disturbed most.
    line("prepare over bare, by time", [a.rate / b.rate for a, b in found], rates["prepare"] / rates["bare"])
    line("prepare over bare, by processor time", [b.cost / a.cost for a, b in found], costs["bare"] / costs["prepare"])
    return lines


def define_flags(name):
    """The flags of a source, too. Returns whether it is known, and its library installed."""
    flags.DEFINE_integer("rounds", 3, "Rounds of both.", lower_bound=1)
    try:
        settings = preparing.Settings(), source_of(name)()
    except (KeyError, ValueError):
        return False
    for part in settings:
        flags_lib.define(part)
    return True


def bench(name):
    if name not in SOURCES:
        raise ValueError(f"source {name!r}: choose one of {', '.join(SOURCES)}")
    settings, source = (flags_lib.from_flags(part) for part in (preparing.Settings(), source_of(name)()))
    settings = dataclasses.replace(settings, num_workers=settings.num_workers or os.cpu_count() or 1)
    if storage.exists(settings.output):
        raise ValueError(f"--output={settings.output}: already there, and would be removed; name another folder")
    print(f"{os.cpu_count()} cores, {settings.num_workers} processes, {flags.FLAGS.rounds} rounds", flush=True)
    print("\n".join(table(measure(name, source, settings, flags.FLAGS.rounds))))


if __name__ == "__main__":
    word = flags_lib.take_word()
    if not define_flags(word) and not usage.is_asked(sys.argv):
        del sys.argv[1:]  # they cannot be read, and the source's name is what is wrong
    flags_lib.run_main(lambda _: bench(word))
