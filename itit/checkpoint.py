"""Checkpoints of a run, and folders of weights: safetensors and JSON, nothing else.

    workdir/checkpoints/step_00001234/
      state.safetensors   the tensors
      meta.json           what the caller wants back beside them
      commit.json         step, number of tensors, bytes and CRC32C of both files, versions; written last

Local: the folder is filled under a hidden name, flushed to disk and renamed, so that a visible one is whole. On gs://,
where folders cannot be renamed, a checkpoint without commit.json is not whole.

    folder of weights/
      config.json         a section of the settings
      model.safetensors   the tensors
      hashes.json         bytes and SHA-256 of the files beside it, and where they come from; written last
"""

import contextlib
import errno
import hashlib
import json
import re
import sys

import google_crc32c
import safetensors
import safetensors.torch
import torch

import itit
from itit import config as config_lib
from itit import storage, tensorfile

FOLDER = "checkpoints"
STAGING = ".staging_"
STATE, META, COMMIT = "state.safetensors", "meta.json", "commit.json"
CONFIG, WEIGHTS, HASHES = "config.json", "model.safetensors", "hashes.json"


def save(workdir, step, tensors, meta, keep_last):
    """Saves a checkpoint, then removes old ones.

    A step that is there and whole stays as it is; a damaged one is replaced. Once the new checkpoint is visible, only
    the newest `keep_last` up to `step` stay; later steps go too, since `restore` has passed over them as damaged.

    Args:
      tensors: dict[str, Tensor] of any device, dtype and layout; numbers are kept bit for bit. Tensors that share
        memory are saved, and come back, as separate ones.
      meta: dict of JSON values.

    Returns:
      Path of the checkpoint.

    Raises:
      ValueError: the disk is full; names path and bytes. Earlier checkpoints are as they were.
    """
    root = storage.join(workdir, FOLDER)
    final = storage.join(root, f"step_{step:08d}")
    if storage.exists(final):
        with contextlib.suppress(ValueError, FileNotFoundError):
            _read(final, step)
            return final
        storage.remove_tree(final)
    files = {STATE: safetensors.torch.save(_separate(tensors), {"format": "pt"}), META: json.dumps(meta).encode()}
    files[COMMIT] = _commit(step, len(tensors), files)
    staging = final if storage.is_remote(final) else storage.join(root, f"{STAGING}step_{step:08d}")
    _sweep(root)
    try:
        storage.make_dirs(staging)
        for name, data in files.items():
            storage.write_bytes(storage.join(staging, name), data)
        if staging != final:
            storage.commit_dir(staging, final)
    except OSError as error:
        storage.remove_tree(staging)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        num_bytes = sum(map(len, files.values()))
        raise ValueError(f"{final}: disk full; this checkpoint needs {num_bytes} bytes, earlier ones stay") from error
    _rotate(root, step, keep_last)
    return final


def restore(workdir, step_wanted=None):
    """The newest whole checkpoint of a run, or the one of `step_wanted`.

    1. Folders are tried from the newest step backwards.
    2. One without commit.json is incomplete: passed over with a warning.
    3. One whose files differ from commit.json in bytes or CRC32C is damaged: passed over with a warning.
    4. The first whole one is returned; nothing is deleted here.

    Returns:
      (step, dict[str, Tensor] on the CPU, meta), or None where no checkpoint was ever completed.

    Raises:
      ValueError: there are completed checkpoints, and every one is damaged; or the one wanted is not there.
    """
    folders = _folders(storage.join(workdir, FOLDER))
    if step_wanted is not None:
        if step_wanted not in folders:
            raise ValueError(f"{workdir}: no checkpoint of step {step_wanted}; there are {sorted(folders) or 'none'}")
        folders = {step_wanted: folders[step_wanted]}
    damaged = []
    for step in sorted(folders, reverse=True):
        path = folders[step]
        if not storage.exists(storage.join(path, COMMIT)):
            print(f"warning: {path}: passed over: incomplete, no {COMMIT}", file=sys.stderr)
            continue
        try:
            return step, *_read(path, step)
        except (ValueError, FileNotFoundError) as error:
            print(f"warning: {path}: passed over: {error}", file=sys.stderr)
            damaged.append(path)
    if step_wanted is not None:
        raise ValueError(f"{folders[step_wanted]}: not whole")
    if damaged:
        raise ValueError(f"{damaged[0]}: damaged, and no other checkpoint is whole; remove the folder to begin anew")
    return None


def latest_step(workdir):
    """Step of the newest complete checkpoint, or None. Its checksums are not read."""
    folders = _folders(storage.join(workdir, FOLDER))
    return max((step for step, path in folders.items() if storage.exists(storage.join(path, COMMIT))), default=None)


def save_weights(folder, tensors, config_section):
    """Writes a folder of weights: dict[str, Tensor], and a section of the settings."""
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    stream_weights(folder, layout, tensors.values(), config_section)


def stream_weights(folder, layout, tensors, config_section, files=None, source=None):
    """`save_weights` of tensors that are made one after the other.

    Args:
      layout: name -> (dtype, shape).
      tensors: iterable of tensors in that order.
      files: name -> bytes of further files.
      source: JSON value, kept in hashes.json: what the weights were made from.
    """
    storage.make_dirs(folder)
    files = {CONFIG: config_lib.to_json(config_section).encode()} | (files or {})
    hashes = {WEIGHTS: tensorfile.write(storage.join(folder, WEIGHTS), layout, tensors)}
    for name, data in files.items():
        storage.write_bytes(storage.join(folder, name), data)
        hashes[name] = hash_of(data)
    write_hashes(folder, hashes, source)


def hash_of(data):
    """What hashes.json holds of a file with these bytes."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def write_hashes(folder, hashes, source=None):
    """Writes hashes.json, last: file name -> {"bytes", "sha256"}, and what the weights were made from."""
    record = {"files": hashes, "source": source}
    storage.write_bytes(storage.join(folder, HASHES), json.dumps(record, indent=1).encode())


def load_weights(folder, config_cls, sha256=None):
    """The inverse of `save_weights`.

    Args:
      sha256: what model.safetensors must have; by default what hashes.json says, if there is one.

    Returns:
      (config_cls instance, dict[str, Tensor] on the CPU).

    Raises:
      ValueError: a file is absent, not what it should be, or not the one in hashes.json (where there is one); names
        path and cause.
    """
    config_path, weights_path = storage.join(folder, CONFIG), storage.join(folder, WEIGHTS)
    hashes = weight_hashes(folder)
    data = _read_bytes(config_path)
    check_hash(config_path, hashes.get(CONFIG), hash_of(data)["sha256"])
    config = config_lib.from_json(config_cls, data, config_path)
    with tensorfile.TensorFile(weights_path) as file:
        tensors, digest = file.read_all()
    check_hash(weights_path, sha256 or hashes.get(WEIGHTS), digest)
    return config, tensors


def weight_hashes(folder, names=(CONFIG, WEIGHTS)):
    """What hashes.json says: file name -> SHA-256; {} for a folder without one, made before there were any.

    Raises ValueError where one of `names` is absent or has another size.
    """
    for name in names:
        if not storage.exists(storage.join(folder, name)):
            raise ValueError(f"{folder}: no {name} in it")
    path = storage.join(folder, HASHES)
    if not storage.exists(path):
        return {}
    try:
        files = json.loads(_read_bytes(path))["files"]
        found = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error!r}") from None
    for name in names:
        size = storage.size(storage.join(folder, name))
        if name in found and size != found[name][0]:
            raise ValueError(f"{storage.join(folder, name)}: {size} bytes instead of the {found[name][0]} in {HASHES}")
    return {name: digest for name, (_, digest) in found.items()}


def check_hash(path, expected, found):
    """Raises ValueError where the SHA-256 of a file is not the expected one. None: any is."""
    if expected and found != expected:
        raise ValueError(f"{path}: damaged or replaced: its SHA-256 is {found}, recorded is {expected}")


def _separate(tensors):
    """Dense CPU tensors of their own memory, as safetensors wants them."""
    places, separate = set(), {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return separate


def _commit(step, num_tensors, files):
    record = {
        "step": step,
        "num_tensors": num_tensors,
        "files": {name: {"bytes": len(data), "crc32c": google_crc32c.value(data)} for name, data in files.items()},
        "versions": {"itit": itit.__version__, "torch": torch.__version__, "safetensors": safetensors.__version__},
    }
    return json.dumps(record, indent=1).encode()


def _read(path, step):
    """(tensors, meta) of one checkpoint. Raises ValueError or FileNotFoundError naming what is damaged."""
    try:
        record = json.loads(_read_bytes(storage.join(path, COMMIT)))
        expected = {name: (record["files"][name]["bytes"], record["files"][name]["crc32c"]) for name in (STATE, META)}
        counts = record["step"], record["num_tensors"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{COMMIT}: {error!r}") from None
    files = {}
    for name, (num_bytes, checksum) in expected.items():
        data = files[name] = _read_bytes(storage.join(path, name))
        if len(data) != num_bytes:
            raise ValueError(f"{name}: {len(data)} bytes instead of {num_bytes}")
        if google_crc32c.value(data) != checksum:
            raise ValueError(f"{name}: wrong checksum")
    tensors = safetensors.torch.load(files[STATE])
    if counts != (step, len(tensors)):
        raise ValueError(f"{COMMIT}: step and number of tensors {counts} instead of {(step, len(tensors))}")
    return tensors, json.loads(files[META])


def _read_bytes(path):
    with storage.open(path) as file:
        return file.read()


def _folders(root):
    """{step: path} of all visible checkpoints, whole or not."""
    names = (re.fullmatch(r"step_(\d+)", name) for name in storage.list_dir(root))
    return {int(name[1]): storage.join(root, name[0]) for name in names if name}


def _sweep(root):
    """Removes what a killed save left behind."""
    for name in storage.list_dir(root):
        if name.startswith(STAGING):
            storage.remove_tree(storage.join(root, name))


def _rotate(root, step, keep_last):
    folders = _folders(root)
    complete = [s for s, path in folders.items() if s <= step and storage.exists(storage.join(path, COMMIT))]
    for old in set(folders) - set(sorted(complete)[-keep_last:]):
        storage.remove_tree(folders[old])
