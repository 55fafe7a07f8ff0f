"""Networks from files: checked folders of weights (see weightsdir.py), and what tools.export writes.

`itit.models.load` and `itit.models.t5.load` are names for these functions.
"""

import json
import os

from torch.overrides import TorchFunctionMode

from itit import storage, tensorfile, text_encoders, weightsdir
from itit.config import DecodeConfig, ModelConfig, ObjectiveConfig, T5Config, VqganConfig, from_json
from itit.models import ITIT, VQGAN

RECORD = "itit"  # metadata of an exported file that holds its record, JSON
MISFIT = f"{weightsdir.WEIGHTS} does not fit {weightsdir.CONFIG}"
SECTIONS = {"model": ModelConfig, "t5": T5Config, "objective": ObjectiveConfig, "decode": DecodeConfig}


class _Undrawn(TorchFunctionMode):
    """Inside, a tensor that would be filled at random stays as it was allocated, which takes no memory yet."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def blank(cls, config):
    """A network without numbers, for `load_module(assign=True)`: the weights that are read are then there once.

    The device "meta" would do the same, but there torch loads its compiler, for seconds.
    """
    with _Undrawn():
        return cls(config)


def load_module(module, tensors, misfit, assign=False):
    """Sets the weights of a module. Raises ValueError, `misfit` and the first weight that does not fit."""
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:  # torch lists every tensor; the first one tells
        cause = str(error).split("\n\t")[1]
        raise ValueError(f"{misfit}: {cause}") from None


def load_text_encoder(folder, sha256=None):
    """The frozen text encoder in a folder, such as tools.convert_t5 writes, in the dtype it is stored in, on the CPU.

    Args:
      sha256: of its model.safetensors; by default the one recorded in the folder.

    Raises ValueError, one line, where a file is absent, damaged, or does not fit the sizes in config.json.
    """
    config, tensors = weightsdir.load(folder, T5Config, sha256)
    for name in ("dim", "head_dim", "ff_dim", "num_layers", "num_heads", "vocab_size"):
        if not isinstance(getattr(config, name), int):
            raise ValueError(f"{storage.join(folder, weightsdir.CONFIG)}: {name} is {getattr(config, name)!r}")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not dtypes.pop().is_floating_point:
        raise ValueError(f"{storage.join(folder, weightsdir.WEIGHTS)}: tensors of one floating type were expected")
    network = text_encoders.network(config, f"{storage.join(folder, weightsdir.CONFIG)}: ")
    encoder = blank(network, config)
    load_module(encoder, tensors, f"{folder}: {MISFIT}", assign=True)
    tensorfile.check_finite(tensors, storage.join(folder, weightsdir.WEIGHTS))
    return encoder.eval()


def load_vqgan(folder, sha256=None):
    """The frozen image tokenizer in a folder, on the CPU.

    Raises ValueError as `load_text_encoder` does, and for a range of pixels or codes that cannot be.
    """
    config, tensors = weightsdir.load(folder, VqganConfig, sha256)
    try:
        vqgan = VQGAN(config)
    except (ValueError, TypeError) as error:  # TypeError: a text where a number should be
        raise ValueError(f"{storage.join(folder, weightsdir.CONFIG)}: {error}") from None
    load_module(vqgan, tensors, f"{folder}: {MISFIT}")
    tensorfile.check_finite(tensors, storage.join(folder, weightsdir.WEIGHTS))
    return vqgan.eval().requires_grad_(False)


def load_itit(path):
    """The network that tools.export wrote, in evaluation mode, on the CPU.

    Args:
      path: the folder, or the safetensors file in it, which may lie elsewhere on its own.

    Raises ValueError, one line, where it is no such file, damaged, or does not fit its configuration.
    """
    path, hashes = exported_file(path)
    sections = sections_of(read_record(path), path)
    with tensorfile.TensorFile(path) as file:
        tensors, digest = file.read_all()
    weightsdir.check_hash(path, hashes.get(weightsdir.WEIGHTS), digest)
    model = blank(ITIT, sections["model"])
    load_module(model, tensors, f"{path}: its tensors do not fit its record", assign=True)
    tensorfile.check_finite(tensors, path)
    return model.eval()


def exported_file(path):
    """(path of the safetensors file, recorded hashes of its folder) of an export, given as a folder or as the file."""
    if storage.exists(storage.join(path, weightsdir.WEIGHTS)):
        return storage.join(path, weightsdir.WEIGHTS), weightsdir.hashes_of(path, (weightsdir.WEIGHTS,))
    if not storage.exists(path) or os.path.isdir(path):
        raise ValueError(f"{path}: no {weightsdir.WEIGHTS} in it; give a folder that tools.export wrote")
    return path, {}


def read_record(path):
    """What tools.export wrote down in a file: dict of JSON values. Raises ValueError for another file."""
    with tensorfile.TensorFile(path) as file:
        text = file.metadata.get(RECORD)
    if text is None:
        raise ValueError(f"{path}: holds tensors, but no record of an ITIT model; export one with tools.export")
    try:
        record = json.loads(text)
        _ = [record["config"][name] for name in SECTIONS]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its record of an ITIT model is damaged: {error!r}") from None
    return record


def sections_of(record, path):
    """Section name -> its part of the configuration, resolved. Raises ValueError for a field that is not known here."""
    return {name: from_json(cls, json.dumps(record["config"][name]), path) for name, cls in SECTIONS.items()}
