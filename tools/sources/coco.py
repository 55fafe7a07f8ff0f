"""COCO: captions in the official json or in Karpathy's, and folders of pictures."""

import dataclasses
import json
import os

from itit import storage
from itit.config import knob
from tools.sources.item import BadItem, Blob, Item


@dataclasses.dataclass(frozen=True)
class Coco:
    """Captions of COCO. All captions of a picture stay together."""

    captions: str = knob("", "captions_*.json of COCO, or Karpathy's dataset_coco.json; patterns, separated by commas.")
    images: str = knob("", "Folders of the pictures, separated by commas; empty: the captions alone, as texts.")
    karpathy_splits: str = knob("", "Splits of Karpathy's json to take (train,restval,val,test); empty: all.")
    image_list: str = knob("", "File that lists the pictures to take, one a line (Karpathy's lists); empty: all.")

    def items(self):
        """Yields one Item a picture, in the order of the json, and BadItems. The id is the picture's in COCO."""
        if not self.captions:
            raise ValueError("--captions is empty: give captions_*.json of COCO or Karpathy's dataset_coco.json")
        files, wanted, taken = self._files(), self._wanted(), 0
        for path in storage.glob(self.captions):
            for number, name, split, captions in self._read(path):
                if wanted is not None and name not in wanted or self.karpathy_splits and split not in self._splits():
                    continue
                taken += 1
                place = f"{path}: picture {number}"
                if self.images and name not in files:
                    yield BadItem(place, f"no file {name} in {self.images}")
                elif captions or self.images:
                    yield Item(str(number), place, files.get(name), tuple(captions))
        if not taken:
            asked = f"--karpathy_splits={self.karpathy_splits} and --image_list={self.image_list}"
            raise ValueError(f"--captions={self.captions}: holds no picture of {asked}")

    def _files(self):
        """Name -> Blob of all files in the folders."""
        folders = [folder.strip() for folder in self.images.split(",") if folder.strip()]
        names = {folder: storage.list_dir(folder) for folder in folders}
        for folder in folders:
            if not names[folder]:
                raise ValueError(f"--images={self.images}: {folder} is no folder with pictures")
        return {name: Blob(storage.join(folder, name)) for folder in reversed(folders) for name in names[folder]}

    def _wanted(self):
        if not self.image_list:
            return None
        lines = storage.read_bytes(self.image_list).decode().splitlines()
        return {os.path.basename(line.split()[0]) for line in lines if line.strip()}

    def _splits(self):
        return {split.strip() for split in self.karpathy_splits.split(",")}

    def _read(self, path):
        """Yields (id, file name, split or None, captions) of each picture."""
        data = storage.read_bytes(path)
        try:
            found = json.loads(data)
            pictures = _official(found) if "annotations" in found else _karpathy(found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: neither captions of COCO nor Karpathy's: {error!r}") from None
        splits = {split for _, _, split, _ in pictures}
        if self.karpathy_splits and not self._splits() <= splits:
            there = ", ".join(sorted(splits - {None})) or "none, only Karpathy's json has them"
            raise ValueError(f"--karpathy_splits={self.karpathy_splits}: the splits of {path} are: {there}")
        return pictures


def _official(found):
    captions = {picture["id"]: [] for picture in found["images"]}
    for annotation in found["annotations"]:
        captions[annotation["image_id"]].append(annotation["caption"])
    return [(picture["id"], os.path.basename(picture["file_name"]), None, captions[picture["id"]])
            for picture in found["images"]]  # fmt: skip


def _karpathy(found):
    return [(picture["cocoid"], os.path.basename(picture["filename"]), picture["split"],
             [sentence["raw"] for sentence in picture["sentences"]])
            for picture in found["images"]]  # fmt: skip
