"""Networks from files: checked folders of weights (see weightsdir.py), and what tools.export writes.

`itit.models.load` and `itit.models.t5.load` are names for these functions.
"""

import json
import math
import os
import pathlib
import re

import torch
from torch.overrides import TorchFunctionMode

from itit import storage, text_encoders
from itit.checkpoint import tensorfile, weightsdir
from itit.config import Config, DecodeConfig, ModelConfig, ObjectiveConfig, T5Config, VqganConfig, from_json
from itit.models import VQGAN, ITITModel
from itit.untrusted import parse_json, shown

SHIPPED = {folder.name: folder for folder in (pathlib.Path(__file__).parents[1] / "shipped").iterdir()}
ON_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # OWNER/NAME on the Hugging Face Hub
RECORD = "itit"  # metadata of an exported file that holds its record, JSON
MISFIT = f"{weightsdir.WEIGHTS} does not fit {weightsdir.CONFIG}"
PARTS, PART = ("t5", "vqgan", "vocabulary"), ("path", "sha256")
SLACK = 2**24  # numbers that a network holds beside its weights: tables of positions and buckets
SECTIONS = {"model": ModelConfig, "t5": T5Config, "objective": ObjectiveConfig, "decode": DecodeConfig}


class _Undrawn(TorchFunctionMode):
    """Inside, a tensor that would be filled at random stays as it was allocated, which takes no memory yet."""

    def __init__(self, held=math.inf):
        super().__init__()
        self._left = held

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.full):
            size = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
            self._left -= math.prod(size)
            if self._left < 0:
                raise ValueError("more numbers than there are")
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def blank(cls, config, held=math.inf):
    """A network without numbers, for `load_module(assign=True)`: the weights that are read are then there once.

    The device "meta" would do the same, but there torch loads its compiler, for seconds.

    Args:
      held: how many numbers there are to fill it. Raises ValueError before more are allocated.
    """
    with _Undrawn(held + SLACK):
        return cls(config)


def load_module(module, tensors, misfit, assign=False):
    """Sets the weights of a module. Raises ValueError, `misfit` and the first weight that does not fit."""
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:  # torch lists every tensor; the first one tells
        cause = str(error).split("\n\t")[1]
        raise ValueError(f"{misfit}: {shown(cause, 500)}") from None


def _built(cls, config, tensors, misfit):
    """`blank` of what should have these tensors. Raises ValueError, `misfit` and why, where it has more."""
    held = sum(tensor.numel() for tensor in tensors.values())
    try:
        return blank(cls, config, held)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{misfit}: {shown(str(error))}") from None


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
    encoder = _built(network, config, tensors, f"{folder}: {MISFIT}")
    load_module(encoder, tensors, f"{folder}: {MISFIT}", assign=True)
    tensorfile.check_finite(tensors, storage.join(folder, weightsdir.WEIGHTS))
    return encoder.eval()


def load_vqgan(folder, sha256=None):
    """The frozen image tokenizer in a folder, on the CPU.

    Raises ValueError as `load_text_encoder` does, and for a range of pixels or codes that cannot be.
    """
    config, tensors = weightsdir.load(folder, VqganConfig, sha256)
    vqgan = _built(VQGAN, config, tensors, storage.join(folder, weightsdir.CONFIG))
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
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}  # stored in bf16, say
    model = _built(ITITModel, sections["model"], tensors, f"{path}: its tensors do not fit its record")
    load_module(model, tensors, f"{path}: its tensors do not fit its record", assign=True)
    tensorfile.check_finite(tensors, path)
    return model.eval()


def exported_file(path):
    """(path of the safetensors file, recorded hashes of its folder) of an export, given as a folder, as the file, or by
    its name where it is shipped with the package; a folder of such a name is given as ./NAME."""
    if path in SHIPPED:
        path = str(SHIPPED[path])
    if storage.exists(storage.join(path, weightsdir.WEIGHTS)):
        return storage.join(path, weightsdir.WEIGHTS), weightsdir.hashes_of(path, (weightsdir.WEIGHTS,))
    if not storage.exists(path) or os.path.isdir(path):
        raise ValueError(f"{path}: no {weightsdir.WEIGHTS} in it; give a folder that tools.export wrote, or "
                         f"a shipped model: {', '.join(SHIPPED)}")  # fmt: skip
    return path, {}


def read_record(path):
    """What tools.export wrote down in a file: dict of JSON values. Raises ValueError for another file."""
    with tensorfile.TensorFile(path) as file:
        text = file.metadata.get(RECORD)
    if text is None:
        raise ValueError(f"{path}: holds tensors, but no record of an ITIT model; export one with tools.export")
    record = parse_json(text, f"{path}: its record of an ITIT model is damaged")
    sections, parts = record.get("config"), record.get("parts", dict.fromkeys(PARTS))
    for name, found, wanted in (("config", sections, SECTIONS), ("parts", parts, PARTS)):
        if not isinstance(found, dict) or not set(wanted) <= set(found):
            raise ValueError(
                f"{path}: its record of an ITIT model is damaged: {name} has not all of {', '.join(wanted)}"
            )
    for name, part in parts.items():
        if part is not None and not (isinstance(part, dict) and all(isinstance(part.get(key), str) for key in PART)):
            raise ValueError(
                f"{path}: its record of an ITIT model is damaged: {shown(name)} is no {' and '.join(PART)}"
            )
    return record


def sections_of(record, path):
    """Section name -> its part of the configuration, resolved. Raises ValueError for what is no such configuration."""
    found = {name: from_json(cls, json.dumps(record["config"][name]), path) for name, cls in SECTIONS.items()}
    try:
        config = Config(**found).resolve()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return {name: getattr(config, name) for name in SECTIONS}
