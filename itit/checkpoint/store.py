"""Checkpoints of a run: safetensors and JSON, nothing else.

    workdir/checkpoints/step_00001234/
      state-00000-of-00002-4be91c07.safetensors   the pieces of tensors that host 0 owns (see shards.py)
      state-00001-of-00002-4be91c07.safetensors   those of host 1
      commit.json   step, what the caller wants back, bytes and checksum of each file, versions; written last

Every save has names of its own, and what commit.json does not name does not count: a folder without it is not whole,
and a step that is saved again is the former one until the new commit.json takes its place. One host alone writes one
file.
"""

import contextlib
import errno
import json
import re
import secrets
import sys

import google_crc32c
import safetensors
import safetensors.torch
import torch

import itit
from itit import storage
from itit.checkpoint import shards
from itit.checkpoint.pieces import Piece, whole_index
from itit.checkpoint.shards import Damaged
from itit.console import say
from itit.hosts import Hosts
from itit.untrusted import parse_json

FOLDER = "checkpoints"
COMMIT = "commit.json"


def whole(tensors):
    """The pieces, for `save`, of a host that owns all: dict[str, Tensor] of any device, dtype and layout."""
    return {name: [Piece(tuple(t.shape), whole_index(t.shape), t)] for name, t in tensors.items()}


def save(workdir, step, pieces, meta, keep_last, hosts=None, keep_every=0):
    """Saves a checkpoint, then removes old ones. All hosts call it.

    Of those up to `step` the newest `keep_last` stay, and all whose step `keep_every` divides, if it is not 0. Later
    ones go, since `restore` has passed over them as damaged.

    Args:
      pieces: tensor's name -> list of `pieces.Piece`: what this host owns. Numbers are kept bit for bit; tensors
        that share memory are saved, and come back, as separate ones.
      meta: dict of JSON values, of host 0.

    Returns:
      Path of the checkpoint, which is whole now.

    Raises:
      ValueError: the disk is full; names path and bytes. A number that this host owns is not finite; names the tensor.
        Another host failed; names it. Another run has saved this step meanwhile (on gs://). Earlier checkpoints are as
        they were.
    """
    hosts = hosts or Hosts()
    folder = storage.join(workdir, FOLDER, f"step_{step:08d}")
    former = storage.version(storage.join(folder, COMMIT)) if hosts.leads else None
    token = hosts.gather(secrets.token_hex(4))[0]
    names = [f"state-{host:05d}-of-{hosts.count:05d}-{token}.safetensors" for host in range(hosts.count)]

    def write():
        with _full_disk(folder, pieces):
            storage.make_dirs(folder)
            return shards.write(storage.join(folder, names[hosts.index]), pieces)

    def commit():
        with _full_disk(folder, pieces):
            if hosts.leads:
                _commit(folder, step, meta, dict(zip(names, records, strict=True)), former)

    try:
        records = hosts.together(write)
        hosts.together(commit)
    except Exception:
        if hosts.leads:
            _tidy(folder)
        raise
    if hosts.leads:
        _tidy(folder)
        _rotate(storage.join(workdir, FOLDER), step, keep_last, keep_every)
    return folder


def restore(workdir, load=None, hosts=None, step=None):
    """The newest whole checkpoint of a run, or the one of `step`. All hosts call it.

    1. Folders are tried from the newest step backwards.
    2. One without commit.json is incomplete: passed over with a warning.
    3. One of which some host reads a file that differs from commit.json, or a number that is not finite, is damaged:
       passed over with a warning.
    4. The first whole one is returned; nothing is deleted here.

    Args:
      load: (step, `shards.Reader`, meta) -> anything. Reads what this host needs, and nothing else is read; is called
        again with an older one where that is damaged. Default: everything, to dict[str, Tensor] on the CPU.

    Returns:
      (step, what `load` returned, meta), or None where no checkpoint was ever completed.

    Raises:
      ValueError: there are completed checkpoints, and every one is damaged; or that of `step` is not whole, or
        not there.
    """
    hosts, load = hosts or Hosts(), load or _everything
    root = storage.join(workdir, FOLDER)
    damaged = []
    for name, complete in hosts.gather(_newest_first(root, step) if hosts.leads else None)[0]:
        path, cause = storage.join(root, name), f"incomplete, no {COMMIT}"
        if complete:
            cause = None
            try:
                record = _read(path)
                loaded = load(record["step"], _reader(path, record["files"]), record["meta"])
            except Damaged as error:
                cause = str(error)
            cause = next((cause for cause in hosts.gather(cause) if cause), None)
            if cause is None:
                return record["step"], loaded, record["meta"]
            damaged.append(path)
        if hosts.leads:
            say(f"warning: {path}: passed over: {cause}", sys.stderr)
    if step is not None:
        found = sorted(_folders(root))
        raise ValueError(f"{workdir}: no whole checkpoint of step {step}; there are folders of {found or 'none'}")
    if damaged:
        raise ValueError(f"{damaged[0]}: damaged, and no other checkpoint is whole; remove the folder to begin anew")
    return None


def latest_step(workdir):
    """Step of the newest complete checkpoint, or None. Its checksums are not read."""
    folders = _folders(storage.join(workdir, FOLDER))
    return max((step for step, path in folders.items() if _is_complete(path)), default=None)


@contextlib.contextmanager
def _full_disk(folder, pieces):
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        num_bytes = sum(piece.value.nbytes for parts in pieces.values() for piece in parts)
        raise ValueError(f"{folder}: disk full; this host needs {num_bytes} bytes, earlier checkpoints stay") from error


def _commit(folder, step, meta, files, former):
    """Makes the folder count, once every tensor is seen to be there. `former`: `storage.version` of commit.json."""
    try:
        _reader(folder, files)
    except Damaged as error:
        raise ValueError(f"{error}: --workdir must be one folder that all hosts share") from None
    versions = {"itit": itit.__version__, "torch": torch.__version__, "safetensors": safetensors.__version__}
    record = {"step": step, "meta": meta, "files": files, "versions": versions}
    checked = {"crc32c": _checksum(record), "record": record}
    storage.write_bytes(storage.join(folder, COMMIT), json.dumps(checked, indent=1).encode(), former)


def _read(folder):
    """What commit.json says, or Damaged. ValueError for a checkpoint in an older format."""
    try:
        checked = parse_json(storage.read_small(storage.join(folder, COMMIT)), COMMIT)
        older = "num_tensors" in checked
        if not older and checked["crc32c"] != _checksum(checked["record"]):
            raise ValueError("wrong checksum")
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise Damaged(f"{COMMIT}: {error!r}") from None
    if older:
        raise ValueError(f"{folder}: an older format of checkpoint, one state.safetensors; read are those of "
                         "state-*-of-*.safetensors: go on with the version that made it, or begin anew")  # fmt: skip
    return checked["record"]


def _checksum(record):
    return google_crc32c.value(json.dumps(record, sort_keys=True).encode())


def _reader(folder, files):
    return shards.Reader({storage.join(folder, name): record for name, record in files.items()})


def _everything(step, reader, meta):
    return {name: reader.read(name) for name in reader.shapes}


def _folders(root):
    """{step: path} of all visible checkpoints, whole or not."""
    names = (re.fullmatch(r"step_(\d+)", name) for name in storage.list_dir(root))
    return {int(name[1]): storage.join(root, name[0]) for name in names if name}


def _is_complete(folder):
    return storage.exists(storage.join(folder, COMMIT))


def _newest_first(root, only=None):
    """[(name of a folder, whether it is complete)], of all steps or of one."""
    found = sorted(_folders(root).items(), reverse=True)
    return [(path.rpartition("/")[2], _is_complete(path)) for step, path in found if only in (None, step)]


def _tidy(folder):
    """Removes what commit.json does not name: a save that failed, or the former files of a step."""
    try:
        kept = {COMMIT, *_read(folder)["files"]}
    except Damaged:
        _remove(folder)
        return
    for name in set(storage.list_dir(folder)) - kept:
        storage.remove_tree(storage.join(folder, name))


def _rotate(root, step, keep_last, keep_every):
    folders = _folders(root)
    complete = [s for s, path in folders.items() if s <= step and _is_complete(path)]
    kept = set(sorted(complete)[-keep_last:]) | {s for s in complete if keep_every and s % keep_every == 0}
    for old in set(folders) - kept:
        _remove(folders[old])


def _remove(folder):
    """Removes a checkpoint, so that a call that is killed in the middle leaves an incomplete and no damaged one."""
    storage.remove_tree(storage.join(folder, COMMIT))
    storage.remove_tree(folder)
