"""`python -m tools.tokenize --input=SHARDS --output=DIR/PREFIX --vqgan=DIR --vocabulary=FILE`: ready ids from raw data.

Writes the same records in the same order, with `image_ids` for `image` (--vqgan) and `text_ids` for `text`
(--vocabulary); shard i of k becomes PREFIX-0000i-of-0000k.tfrecord, with its index. A finished shard is skipped on a
rerun, an unfinished one is never visible. PREFIX-settings.json holds what the shards were made with; a rerun must be
given the same, and so must a training on them.

With --num_crops or --flip a record becomes several, one a view of its picture; their ids are KEY#0, KEY#1, ...
"""

# `python tools/x.py` looks for Python's own module `tokenize` here first.
if __name__ == "tokenize":
    raise SystemExit("error: run it from the root of the repository as a module: python -m tools.NAME")

from absl import flags

from itit import flags as flags_lib
from itit import locks, storage
from itit.data import made_with, records, shard_index
from tools.data import tokenizing
from tools.data.splits import settle


def run(pattern, output, settings):
    """Converts every shard that is not yet there.

    Raises ValueError where `output` was begun with other settings, or another process is at work on it.
    """
    settings.check()
    sources = storage.glob(pattern)
    with locks.hold(locks.beside(output), f"--output={output}"):
        storage.remove_rests(output.rpartition("/")[0] or ".")
        settle(made_with.path_of(output), {"input": sources} | settings.recorded(), {"num_crops": 1, "flip": False})
        _run(sources, output, settings)


def _run(sources, output, settings):
    folder, names = output.rpartition("/")[0], [f"{i:05d}-of-{len(sources):05d}.tfrecord" for i in range(len(sources))]
    there, todo = set(storage.list_dir(folder or ".")), []
    for source, target in zip(sources, (f"{output}-{name}" for name in names), strict=True):
        if target.rpartition("/")[2] not in there:
            todo.append((source, target))
        elif (
            shard_index.path_of(target).rpartition("/")[2] not in there
        ):  # killed between the two by an earlier version
            shard_index.write(target, records.index(target))
    if len(todo) < len(sources):
        print(f"{len(sources) - len(todo)} of {len(sources)} shards are already there")
    if not todo:
        return
    tokenizers = tokenizing.tokenizers_of(settings)
    total = tokenizing.convert(todo, settings, tokenizers, show=True)
    left = [f"{name}s stay as they are (no --{flag})" for name, flag in (("image", "vqgan"), ("text", "vocabulary"))
            if not getattr(settings, flag)]  # fmt: skip
    cut = tokenizers.text.num_cut if tokenizers.text else 0
    print(f"{output}: {total} records in {len(todo)} shards; {cut} texts were cut"
          + "".join(f"; {what}" for what in left))  # fmt: skip


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards to read, comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "Folder and first part of the names of the new shards.", required=True)
    flags_lib.define(tokenizing.Settings())


def main(_):
    flag = flags.FLAGS
    run(flag.input, flag.output, flags_lib.from_flags(tokenizing.Settings()))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
