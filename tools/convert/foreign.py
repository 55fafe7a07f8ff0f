"""Checkpoints of others as Hugging Face has them: tensors by name, from one file or from shards with an index."""

from itit import storage
from itit.checkpoint.tensorfile import TensorFile
from itit.untrusted import parse_json, shown
from tools.convert import pickled

NAMES = ("model.safetensors", "pytorch_model.bin")


class Checkpoint:
    """The tensors of a folder, on a local disk.

    Attributes: `files`, file -> names of its tensors in its order, for the whole checkpoint.

    Raises ValueError where the folder holds none of `NAMES`, in one file or with an index of shards.
    """

    def __init__(self, folder):
        self.folder = folder
        self._path, self._open = None, None
        self.files = self._find()

    def read(self, file, name):
        """One tensor. Files are cheapest read one after the other: one is open at a time."""
        tensors = self._tensors(file)
        if isinstance(tensors, TensorFile):
            return tensors.read(name) if name in tensors.entries else self._absent(file, name)
        return tensors[name] if name in tensors else self._absent(file, name)

    def close(self):
        if isinstance(self._open, TensorFile):
            self._open.__exit__()
        self._path, self._open = None, None

    def _find(self):
        for name in NAMES:
            index = storage.join(self.folder, f"{name}.index.json")
            if storage.exists(index):
                return _read_index(index)
            if storage.exists(storage.join(self.folder, name)):
                tensors = self._tensors(name)
                return {name: list(tensors.entries if isinstance(tensors, TensorFile) else tensors)}
        raise ValueError(f"{self.folder}: neither {' nor '.join(NAMES)} in it, whole or with an .index.json of shards")

    def _tensors(self, file):
        if self._path != file:
            self.close()
            path = storage.join(self.folder, file)
            if not storage.exists(path):
                raise ValueError(f"{path}: no such shard, and it is needed")
            self._path, self._open = file, TensorFile(path) if file.endswith(".safetensors") else pickled.read(path)
        return self._open

    def _absent(self, file, name):
        raise ValueError(f"{storage.join(self.folder, file)}: no {shown(name)} in it, though the index says so")


def _read_index(path):
    places, files = parse_json(storage.read_small(path), f"{path}: not an index of shards").get("weight_map"), {}
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{path}: not an index of shards: no weight_map of names and files")
    for name, shard in places.items():
        files.setdefault(shard, []).append(name)
    for shard in files:
        if "/" in shard or not shard.endswith((".safetensors", ".bin")):
            raise ValueError(f"{path}: {shown(repr(shard))} is no shard beside it")
    return files
