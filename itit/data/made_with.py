"""What ready ids were made with: the record that `tools.tokenize` leaves beside shards, against what a run is given.

Ids of another image tokenizer or vocabulary of equal sizes are valid ids, and mean something else.
"""

import collections
import functools
import re

import google_crc32c

from itit import storage
from itit.untrusted import parse_json

SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.tfrecord")
WORK, BEGUN = ".work", "begun.json"  # a folder and a file of it, where tools.prepare has not finished
# Feature of a record -> the setting that names what made it: its flag, and its key in the record.
PARTS = {"image_ids": "vqgan", "text_ids": "vocabulary"}


def path_of(prefix):
    """Where the record of PREFIX-0000i-of-0000k.tfrecord lies."""
    return f"{prefix}-settings.json"


def incomplete(paths):
    """list of lines: sets of which there are fewer shards than their names say."""
    sets = collections.Counter(found.groups() for path in paths if (found := SHARD.fullmatch(path)))
    return [f"{count} of the {int(whole)} shards of {prefix}" for (prefix, whole), count in sorted(sets.items())
            if count < int(whole)]  # fmt: skip


def unfinished(paths):
    """list of lines: folders that tools.prepare has not finished, or is at work in."""
    folders = sorted({path.rpartition("/")[0] for path in paths})
    return [f"{folder or '.'} is not finished: repeat the tools.prepare that has begun it" for folder in folders
            if storage.exists(storage.join(folder, WORK, BEGUN))]  # fmt: skip


def check(sources, data):
    """Compares the record of every set of shards with ready ids with the image tokenizer and the vocabulary given.

    Args:
      sources: the `Source`s of a run.
      data: DataConfig. Where a part is not given, or there is no record of it, nothing is compared.

    Raises ValueError, one line, naming both where they differ.
    """
    known = functools.cache(checksum)
    for source in sources:
        for form in PARTS.keys() & source.forms.values():
            name = PARTS[form]
            given = getattr(data, name)
            if not given:
                continue
            for prefix in sorted({found[1] for path in source.paths if (found := SHARD.fullmatch(path))}):
                then, now = _recorded(path_of(prefix)).get(name), known(weights_of(name, given))
                if then and then != now:
                    raise ValueError(f"--{name}={given}: not what the {form} of --{source.name} were made with: its "
                                     f"checksum is {now}, {path_of(prefix)} says {then}")  # fmt: skip


def weights_of(name, given):
    """The file whose checksum tells a part: of a folder of weights that in which they are."""
    return storage.join(given, "model.safetensors") if name == "vqgan" else given


def checksum(path):
    """CRC32C of a file. Raises ValueError where there is none."""
    if not storage.exists(path):
        raise ValueError(f"{path}: no such file")
    digest = google_crc32c.Checksum()
    with storage.open(path) as file:
        while part := file.read(storage.CHUNK):
            digest.update(part)
    return int.from_bytes(digest.digest(), "big")


def _recorded(path):
    """What a record says, {} where there is none."""
    if not storage.exists(path):
        return {}
    return parse_json(storage.read_small(path), path)
