"""What the tools that make many files share: a whole folder, settings that stay, splits as shards."""

import contextlib
import filecmp
import json
import os

import tqdm

from itit import locks, storage
from itit.checkpoint import weightsdir
from itit.data import records, shard_index

RECORDS_A_SHARD = 5000


@contextlib.contextmanager
def new_folder(output, repeatable=False):
    """Yields a staging folder that becomes `output` when the block ends well: a folder on disk is there only complete.

    On gs:// nothing is renamed: `output` itself is yielded, and what is written last there says that it is complete.

    Args:
      repeatable: what is written depends on nothing but what is asked for. Where `output` is there, it is made once
        more and compared: a call that was killed when all was done ends well when it is repeated.

    Raises ValueError where `output` already holds something else, or another process is making it. What an earlier,
    killed call left is removed.
    """
    output = output.rstrip("/")
    with locks.hold(locks.beside(output), f"--output={output}"):
        if storage.exists(output) and not (repeatable and _is_finished(output)):
            raise ValueError(f"--output={output}: already there; remove it or name another folder")
        if storage.is_remote(output):
            yield output
            return
        staging = output + ".partial"
        storage.remove_tree(staging)
        storage.make_dirs(staging)
        yield staging
        if not storage.exists(output):
            storage.commit_dir(staging, output)
            return
        same = _same(staging, output)
        storage.remove_tree(staging)
        if not same:
            raise ValueError(f"--output={output}: already there, and holds something else; name another folder")


def _is_finished(output):
    """Whether a local folder ends with what is written last."""
    return not storage.is_remote(output) and storage.exists(storage.join(output, weightsdir.HASHES))


def _same(one, other):
    """Whether two local folders hold the same files with the same bytes."""
    found, expected = ({os.path.relpath(os.path.join(place, name), folder) for place, _, names in os.walk(folder)
                        for name in names} for folder in (one, other))  # fmt: skip
    return found == expected and all(
        filecmp.cmp(os.path.join(one, name), os.path.join(other, name), shallow=False) for name in found
    )


def settle(path, settings, absent=None, made=True):
    """Writes down the settings of work that may be interrupted, JSON, or compares them with those that are there.

    Args:
      absent: name -> value of settings that have not always been written down.
      made: whether anything was made with those that are there, or may be by another host. Nothing is lost otherwise,
        and they are written anew.

    Raises ValueError naming the first that differs.
    """
    if not made or not storage.exists(path):
        storage.make_dirs(path.rpartition("/")[0] or ".")
        storage.write_bytes(path, json.dumps(settings, indent=1).encode())
        return
    found = (absent or {}) | json.loads(storage.read_bytes(path))
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(f"{path}: --{name} was {found.get(name)!r}, is now {value!r}; name another --output")


def write_split(folder, name, examples, total):
    """Writes `total` examples (dicts of features) into folder/NAME-0000i-of-0000k.tfrecord, each with its index, with a
    progress bar."""
    num_shards = max(1, -(-total // RECORDS_A_SHARD))
    examples = iter(tqdm.tqdm(examples, name, total, unit=" records", leave=False))
    for shard in range(num_shards):
        path = storage.join(folder, f"{name}-{shard:05d}-of-{num_shards:05d}.tfrecord")
        with records.RecordWriter(path) as writer:
            for _ in range(total * shard // num_shards, total * (shard + 1) // num_shards):
                writer.write(records.encode_example(next(examples)))
        shard_index.write(path, writer.spans)
    examples.close()
