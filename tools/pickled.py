"""Pickled checkpoints of others (.ckpt, .bin, .pt, .pth): the one place where a pickle is opened, for tensors alone.

A pickle can run anything when it is opened. `torch.load(weights_only=True)` builds tensors, plain containers and
numbers and refuses whatever else a file asks for; what leaves a tool is safetensors.
"""

import re
import zipfile

import torch

SUFFIXES = (".ckpt", ".bin", ".pt", ".pth")


class _Inert:
    """Stands for the class by which PyTorch Lightning files the state of a callback; it is never called."""


# Lightning's checkpoints name this class beside the weights; taming-transformers' were written by Lightning.
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


def read(path):
    """dict[str, Tensor] on the CPU, from a local file that holds one or has it under "state_dict".

    Raises ValueError where the file is damaged, asks for more than tensors, or holds no dict of tensors.
    """
    try:
        with torch.serialization.safe_globals([(_Inert, LIGHTNING)]):
            # Mapped, not read, where the format allows: a tensor takes memory when it is looked at.
            mapped = zipfile.is_zipfile(path)
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise
    except Exception as error:  # of several unrelated types
        raise ValueError(f"{path}: damaged, or asks for more than tensors: {_cause(error)}") from None
    if isinstance(found, dict):
        found = found.get("state_dict", found)
    if not isinstance(found, dict) or not found or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise ValueError(f"{path}: holds no dict of tensors, neither as a whole nor under 'state_dict'")
    return found


def _cause(error):
    """What was refused; torch's own advice, to open the file unguarded, stays away."""
    found = re.search(
        r"((Unsupported|Trying to load unsupported)[^\n]+?)( was not an allowed| whose |\n|$)", str(error)
    )
    return found[1] if found else str(error).split("\n")[0] or type(error).__name__
