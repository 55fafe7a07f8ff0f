"""`python -m tools.tokenize --input=SHARDS --output=DIR/PREFIX --vqgan=DIR --vocabulary=FILE`: ready ids from raw data.

Writes the same records in the same order, with `image_ids` for `image` (--vqgan) and `text_ids` for `text`
(--vocabulary); shard i of k becomes PREFIX-0000i-of-0000k.tfrecord, with its index. A finished shard is skipped on a
rerun, an unfinished one is never visible. PREFIX-settings.json holds what the shards were made with; a rerun must be
given the same, and so must a training on them.

Under torchrun each process makes some of the shards, on a device of its own.

With --num_crops or --flip a record becomes several, one a view of its picture; their ids are KEY#0, KEY#1, ...
"""

# `python tools/x.py` looks for Python's own module `tokenize` here first.
if __name__ == "tokenize":
    raise SystemExit("error: run it from the root of the repository as a module: python -m tools.NAME")

import functools

import tqdm
from absl import flags

from itit import flags as flags_lib
from itit import locks, storage
from itit.console import counted
from itit.data import made_with, records, shard_index
from tools.data import tokenizing
from tools.data.splits import settle
from tools.spread.distribution import Distribution, of_flags, results


def run(pattern, output, settings, distribution=Distribution()):  # noqa: B008 (it is frozen)
    """Converts every shard that is not yet there, of this host's share.

    Raises ValueError where `output` was begun with other settings, or another process is at work on it.
    """
    settings.check()
    distribution.check()
    found = storage.stamps(pattern)
    if lines := made_with.unfinished(found):
        raise ValueError(f"--input={pattern}: {lines[0]}")
    sources, sizes = list(found), [int(stamp.split()[0]) for stamp in found.values()]
    with locks.claim(locks.beside(output) + distribution.suffix, f"--output={output}") as check:
        storage.remove_rests(output.rpartition("/")[0] or ".")
        asked = {"input": sources, "input_bytes": sizes} | settings.recorded()
        absent = {"num_crops": 1, "flip": False, "input_bytes": sizes}
        made = _has_shards(output)
        if made and not storage.exists(made_with.path_of(output)):
            raise ValueError(f"--output={output}: there are shards, and no {made_with.path_of(output)} that says what "
                             "they were made with; name another one")  # fmt: skip
        settle(made_with.path_of(output), asked, absent, made or distribution.num_hosts > 1)
        _run(sources, output, settings, distribution, check)


def _has_shards(output):
    folder, _, start = output.rpartition("/")
    paths = (storage.join(folder, name) for name in storage.list_dir(folder or ".") if name.startswith(start))
    return any(found[1] == output for path in paths if (found := made_with.SHARD.fullmatch(path)))


def _run(sources, output, settings, distribution, check):
    folder, names = output.rpartition("/")[0], [f"{i:05d}-of-{len(sources):05d}.tfrecord" for i in range(len(sources))]
    there, todo = set(storage.list_dir(folder or ".")), []
    pairs = distribution.mine(list(zip(sources, (f"{output}-{name}" for name in names), strict=True)))
    for source, target in pairs:
        if target.rpartition("/")[2] not in there:
            todo.append((source, target))
        elif shard_index.path_of(target).rpartition("/")[2] not in there:  # copied without it, perhaps
            shard_index.write(target, records.index(target))
    if len(todo) < len(pairs):
        print(f"already there: {len(pairs) - len(todo)} of {counted(len(pairs), 'shard')}")
    if not todo:
        return
    total, cut, convert = 0, 0, functools.partial(tokenizing.convert_all, settings)
    with tqdm.tqdm(desc="tokenizing", unit=" records") as bar:
        for found in results(convert, todo, distribution, len(todo), bar):
            check()
            total, cut = total + found["records"], cut + found["cut"]
            bar.update(max(0, total - bar.n))
    left = [f"{name}s stay as they are (no --{flag})" for name, flag in (("image", "vqgan"), ("text", "vocabulary"))
            if not getattr(settings, flag)]  # fmt: skip
    print(f"{output}: {counted(total, 'record')} in {counted(len(todo), 'shard')}; {counted(cut, 'text')} cut"
          + "".join(f"; {what}" for what in left))  # fmt: skip


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards to read, comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "Folder and first part of the names of the new shards.", required=True)
    flags_lib.define(tokenizing.Settings())
    flags_lib.define(Distribution())


def main(_):
    flag = flags.FLAGS
    run(flag.input, flag.output, flags_lib.from_flags(tokenizing.Settings()), of_flags(Distribution()))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
