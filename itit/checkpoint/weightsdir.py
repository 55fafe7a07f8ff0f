"""Folders of weights: safetensors and JSON, nothing else.

folder/
  config.json         a section of the settings
  model.safetensors   the tensors
  hashes.json         bytes and SHA-256 of the files beside it, and where they come from; written last
"""

import hashlib
import json

from itit import config as config_lib
from itit import storage, untrusted
from itit.checkpoint import tensorfile

CONFIG, WEIGHTS, HASHES = "config.json", "model.safetensors", "hashes.json"


def save(folder, tensors, config_section):
    """Writes a folder of weights: dict[str, Tensor], and a section of the settings."""
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    stream(folder, layout, tensors.values(), config_section)


def stream(folder, layout, tensors, config_section, files=None, source=None):
    """`save` of tensors that are made one after the other.

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


def load(folder, config_cls, sha256=None):
    """The inverse of `save`.

    Args:
      sha256: what model.safetensors must have; by default what hashes.json says, if there is one.

    Returns:
      (config_cls instance, dict[str, Tensor] on the CPU).

    Raises:
      ValueError: a file is absent, not what it should be, or not the one in hashes.json (where there is one); names
        path and cause.
    """
    config_path, weights_path = storage.join(folder, CONFIG), storage.join(folder, WEIGHTS)
    hashes = hashes_of(folder)
    data = storage.read_small(config_path)
    check_hash(config_path, hashes.get(CONFIG), hash_of(data)["sha256"])
    config = config_lib.from_json(config_cls, data, config_path)
    with tensorfile.TensorFile(weights_path) as file:
        tensors, digest = file.read_all()
    check_hash(weights_path, sha256 or hashes.get(WEIGHTS), digest)
    return config, tensors


def hashes_of(folder, names=(CONFIG, WEIGHTS)):
    """What hashes.json says: file name -> SHA-256; {} for a folder without one, made before there were any.

    Raises ValueError where one of `names` is absent or has another size.
    """
    for name in names:
        if not storage.exists(storage.join(folder, name)):
            raise ValueError(f"{folder}: no {name} in it")
    path = storage.join(folder, HASHES)
    if not storage.exists(path):
        return {}
    files = untrusted.parse_json(storage.read_small(path), path).get("files")
    try:
        found = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: no bytes and sha256 of each of its files") from None
    for name in names:
        size = storage.size(storage.join(folder, name))
        if name in found and size != found[name][0]:
            recorded = untrusted.shown(str(found[name][0]))
            raise ValueError(f"{storage.join(folder, name)}: {size} bytes instead of the {recorded} in {HASHES}")
    return {name: digest for name, (_, digest) in found.items()}


def check_hash(path, expected, found):
    """Raises ValueError where the SHA-256 of a file is not the expected one. None: any is."""
    if expected and found != expected:
        raise ValueError(
            f"{path}: damaged or replaced: its SHA-256 is {found}, recorded is {untrusted.shown(str(expected))}"
        )
