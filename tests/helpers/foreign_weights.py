"""Checkpoints as others publish them: safetensors or PyTorch files, whole, in shards, and those of Lightning."""

import json
import sys
import types
from unittest import mock

import safetensors.torch
import torch


def write(folder, tensors, kind="safetensors", num_shards=1, legacy=False):
    """Writes model.safetensors or pytorch_model.bin, or `num_shards` shards of it and their index.

    Args:
      kind: "safetensors" or "bin".
      legacy: a PyTorch file as before version 1.6, without zip.
    """
    stem, end = {"safetensors": ("model", "safetensors"), "bin": ("pytorch_model", "bin")}[kind]
    names, files = list(tensors), {}
    for i in range(num_shards):
        file = f"{stem}.{end}" if num_shards == 1 else f"{stem}-{i + 1:05d}-of-{num_shards:05d}.{end}"
        part = {name: tensors[name] for name in names[i::num_shards]}
        if kind == "safetensors":
            safetensors.torch.save_file({n: t.clone().contiguous() for n, t in part.items()}, str(folder / file))
        else:
            torch.save(part, folder / file, _use_new_zipfile_serialization=not legacy)
        files |= dict.fromkeys(part, file)
    if num_shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


def write_lightning(path, tensors):
    """Writes a checkpoint as PyTorch Lightning does: tensors under "state_dict", beside the state of a callback that is
    filed under its class, which need not be there where the file is read."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    modules = {name: types.ModuleType(name) for name in names}
    callback = type("ModelCheckpoint", (), {"__module__": names[-1]})
    modules[names[-1]].ModelCheckpoint = callback
    with mock.patch.dict(sys.modules, modules):
        torch.save({"epoch": 3, "state_dict": tensors, "callbacks": {callback: {"best": 0.5}}}, path)


def write_anything(path, value, legacy=False):
    """A pickle of whatever object."""
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)


def read(path):
    """What torch itself reads of a file of `write`."""
    return torch.load(path, weights_only=True)
