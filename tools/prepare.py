"""`python -m tools.prepare SOURCE --output=DIR ...`: one's own pictures and texts as TFRecord shards for training.

SOURCE is coco, folder, jsonl, csv, tsv, parquet, hf, webdataset or text; `python -m tools.prepare SOURCE --help` lists
its flags. DIR gets `paired-*.tfrecord` (pictures with a text), `images-*.tfrecord`, `texts-*.tfrecord`, whichever there
are, an index beside each shard, and, at the end, `dataset.json`: counts, bytes, schema, a fingerprint of the ids,
settings. Killed and called again, it goes on where it was.
"""

import difflib
import sys

from itit import flags as flags_lib
from itit import usage
from itit.console import counted
from itit.flags import run_main
from tools.data import preparing
from tools.data.sources import SOURCES, source_of
from tools.spread.distribution import Distribution


def define_flags(name):
    """The flags of a source; of an unknown one none. Returns whether it is known, and its library installed."""
    try:
        settings = preparing.Settings(), Distribution(), source_of(name)()
    except (KeyError, ValueError):
        return False
    for part in settings:
        flags_lib.define(part)
    return True


def prepare(name):
    """Runs by the parsed flags. Raises ValueError, one line."""
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"source {name!r}: choose one of {', '.join(SOURCES)}{hint}")
    settings, source = (flags_lib.from_flags(part) for part in (preparing.Settings(), source_of(name)()))
    distribution = flags_lib.from_flags(Distribution())
    found = preparing.run(name, source, settings, distribution)
    if not found:
        print(f"host {distribution.host_index} of {distribution.num_hosts}: its shards are done; host 0 ends the set")
        return
    for split, values in found["splits"].items():
        number, features = counted(values["records"], "record"), " and ".join(list(values["schema"])[1:])
        shards = counted(len(values["shards"]), "shard")
        print(f"{split}: {number} of {features}, {values['bytes'] / 1e6:.1f} MB in {shards}")
    if found["damaged"]:
        print(f"{counted(found['damaged'], 'damaged item')} left out: {settings.output}/{preparing.DAMAGED}")
    if found.get("empty_texts"):
        print(f"{found['empty_texts']} empty texts left out")
    if found.get("passed_over"):
        print("passed over: " + ", ".join(f"{count} {kind}" for kind, count in found["passed_over"].items()))


if __name__ == "__main__":
    word = flags_lib.take_word()
    if not define_flags(word) and not usage.is_asked(sys.argv):
        del sys.argv[1:]  # they cannot be read, and the source's name is what is wrong
    run_main(lambda _: prepare(word))
