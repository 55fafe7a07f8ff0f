"""`python -m tools.inspect DATASET`: every record of a dataset looked at, counts, histograms, and a grid of pictures.

DATASET is a folder, best one of tools.prepare with its `dataset.json`, or patterns of shards. Checked are checksums,
indexes, features, ids (each once), pictures (decoded whole) and texts; with `dataset.json` also counts, bytes and
fingerprints. The exit code is 2 where anything is damaged, and each damage is named, `path@offset: cause`.
"""

# `python tools/x.py` looks for Python's own module `inspect` here first.
if __name__ == "inspect":
    raise SystemExit("error: run it from the root of the repository as a module: python -m tools.NAME")

import collections
import io

import numpy as np
import tqdm
from absl import flags
from PIL import Image

from itit import flags as flags_lib
from itit import sheets, storage
from itit.config import DataConfig
from itit.console import counted
from itit.flags import run_main
from tools.data import inspection, preparing
from tools.spread import workers

NUM_TILES, COLUMNS = 24, 6  # pictures on the grid: of a group, in a row
NUM_NAMED, BINS, BAR = 20, 10, 40  # lines of damage; of histograms


def jobs_of(dataset, vocabulary, max_image_pixels):
    """[(group, Job)] of a folder or of patterns. Raises ValueError where there are no shards."""
    if not dataset:
        raise ValueError("name a folder or patterns of shards: python -m tools.inspect DATASET")
    described = storage.join(dataset, preparing.DATASET)
    if storage.exists(described):
        shards = [(split, storage.join(dataset, shard["name"]), shard | {"features": list(values["schema"])})
                  for split, values in preparing.read_dataset(described)["splits"].items()
                  for shard in values["shards"]]  # fmt: skip
    else:
        pattern = storage.join(dataset, "*.tfrecord") if storage.list_dir(dataset) else dataset
        shards = [(None, path, None) for path in storage.glob(pattern)]
    counts = collections.Counter(group for group, _, _ in shards)
    return [(group, inspection.Job(path, expected, vocabulary, max_image_pixels, -(-NUM_TILES // counts[group])))
            for group, path, expected in shards]  # fmt: skip


def twins(reports):
    """`path@offset: cause` of each record whose id was there before."""
    hashes = np.concatenate([np.array(report.hashes, np.uint64) for report in reports] or [np.zeros(0, np.uint64)])
    order = np.argsort(hashes, kind="stable")
    again = order[1:][hashes[order[1:]] == hashes[order[:-1]]]
    places = [f"{report.path}@{offset}" for report in reports if report.hashes for offset in report.offsets]
    return [f"{places[number]}: its id was there before" for number in sorted(again.tolist())]


def histogram(title, counter):
    """Lines of a histogram of value -> how many."""
    values, weights = np.array(list(counter)), np.array(list(counter.values()))
    counts, edges = np.histogram(values, min(BINS, int(np.ptp(values)) + 1), weights=weights)
    lines = [f"  {title}: from {values.min()} to {values.max()}, mean {np.average(values, weights=weights):.1f}"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        lines.append(f"    {low:8.1f} to {high:8.1f} {count:9d} {'#' * int(np.ceil(BAR * count / counts.max()))}")
    return lines


def describe(group, reports, unit):
    """Lines on the reports of a group of shards."""
    num_records, megabytes = sum(len(r.offsets) for r in reports), sum(r.num_bytes for r in reports) / 1e6
    features = ", ".join(sorted({name for report in reports for name in report.features}))
    sound, shards = counted(num_records, "sound record"), counted(len(reports), "shard")
    lines = [f"{group}: {sound} in {shards}, {megabytes:.1f} MB: {features}"]
    lengths, short = collections.Counter(), collections.Counter()
    for report in reports:
        lengths += report.lengths
        for size, count in report.sizes.items():
            short[min(size)] += count
    lines += histogram(f"length of texts in {unit}", lengths) if lengths else []
    lines += histogram("short side of pictures in pixels", short) if short else []
    for what in dict.fromkeys(what for report in reports for what in report.extremes):
        value, place = max(report.extremes[what] for report in reports if what in report.extremes)
        lines.append(f"  {what}: {value} ({place})")
    return lines


def define_flags():
    flags.DEFINE_string("grid", "", "Picture (PNG) of some records; by default inspect.png in the folder.")
    flags.DEFINE_string("vocabulary", "", "SentencePiece model (.model); texts are then measured in pieces with EOS.")
    flags.DEFINE_integer("max_image_pixels", DataConfig.max_image_pixels, "Larger pictures count as damaged.")
    flags.DEFINE_integer("num_workers", 0, "Processes; 0: one a processor; 1: this one.", lower_bound=0)


def inspect(dataset, grid, vocabulary, max_image_pixels, num_workers):
    """Prints and draws. Raises ValueError where anything is damaged."""
    jobs = jobs_of(dataset, vocabulary, max_image_pixels)
    found = workers.ordered(inspection.examine, (job for _, job in jobs), num_workers)
    reports = list(tqdm.tqdm(found, "inspecting", len(jobs), unit=" shards"))
    groups = {}
    for (group, _), report in zip(jobs, reports, strict=True):
        groups.setdefault(group or " and ".join(report.features) or "nothing", []).append(report)
    sections = []
    for group, members in groups.items():
        print("\n".join(describe(group, members, "pieces" if vocabulary else "characters")))
        tiles = [tile for report in members for tile in report.tiles][:NUM_TILES]
        panels = [sheets.Panel(Image.open(io.BytesIO(data)), text) for data, text in tiles]
        sections += [sheets.Section(group, sheets.in_rows(panels, COLUMNS))] if panels else []
    if sections:
        grid = grid or storage.join(jobs[0][1].path.rpartition("/")[0] or ".", "inspect.png")
        sheets.write(grid, sections)
        print(f"grid: {grid}")
    damaged = [line for report in reports for line in report.damaged] + twins(reports)
    print("\n".join(f"damaged: {line}" for line in damaged[:NUM_NAMED]) or "nothing is damaged")
    if damaged:
        raise ValueError(f"{dataset}: {len(damaged)} damaged, the first: {damaged[0]}")


def main(dataset):
    flag = flags.FLAGS
    inspect(dataset, flag.grid, flag.vocabulary, flag.max_image_pixels, flag.num_workers)


if __name__ == "__main__":
    define_flags()
    word = flags_lib.take_word()
    run_main(lambda _: main(word))
