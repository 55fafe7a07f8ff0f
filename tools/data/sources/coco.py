"""COCO: captions in the official json or in Karpathy's, and folders of pictures."""

import collections
import dataclasses
import os
import re

from itit import storage
from itit.config import knob
from tools.data.sources import coco_captions, lines, lookup
from tools.data.sources.item import BadItem, Blob, Item, digest


@dataclasses.dataclass(frozen=True)
class Coco:
    """Captions of COCO. All captions of a picture stay together."""

    captions: str = knob("", "captions_*.json of COCO, or Karpathy's dataset_coco.json; patterns, separated by commas.")
    images: str = knob("", "Folders of the pictures, with all that is below them, separated by commas; empty: the "
                       "captions alone, as texts.")  # fmt: skip
    karpathy_splits: str = knob("", "Splits of Karpathy's json to take (train,restval,val,test); empty: all.")
    image_list: str = knob("", "File that lists the pictures to take, one a line (Karpathy's lists); empty: all.")

    def parts(self):
        """All together, and what tells its files."""
        if not self.captions:
            raise ValueError("--captions is empty: give captions_*.json of COCO or Karpathy's dataset_coco.json")
        read = [storage.stamps(pattern) for pattern in (self.captions, self.image_list) if pattern]
        pictures = lookup.Lookup(self.images, "images").paths() if self.images else []
        return {self.captions: digest([*map(str, read), *pictures])}

    def items(self, part):
        """Yields one Item a picture, in the order of the json, and BadItems. The id is the picture's in COCO."""
        files = lookup.Lookup(self.images, "images") if self.images else None
        listed, taken = lines.read(self.image_list) if self.image_list else [], 0
        missing = dict(listed)
        told = {path: self._read(path) for path in storage.glob(part)}
        lone = lookup.lone(p.name for pictures, _ in told.values() for p in pictures if p.name)
        for path, (pictures, bad) in told.items():
            wanted = self._wanted(pictures, listed, missing)
            for picture in pictures:
                in_split = not self.karpathy_splits or picture.split in self._splits()
                if in_split and (not self.image_list or picture.name in wanted):
                    taken += 1
                    yield from picture.bad
                    yield from self._items(picture, f"{path}: picture {picture.key}", files, lone)
            yield from bad
        for number, line in missing.items():
            yield BadItem(f"{self.image_list}:{number}", f"no picture {line} in {self.captions}")
        if not taken:
            asked = f"--karpathy_splits={self.karpathy_splits} and --image_list={self.image_list}"
            raise ValueError(f"--captions={self.captions}: holds no picture of {asked}")

    def _items(self, picture, place, files, lone):
        """Yields what a picture gives: an Item, a BadItem, or, where there are only texts and it has none, nothing."""
        image = None
        if files:
            try:
                if not picture.name:
                    raise ValueError("the json names no file of it")
                image = Blob(files.find(picture.name, lone))
            except ValueError as error:
                yield BadItem(place, error)
                return
        if image or picture.texts:
            yield Item(picture.key, place, image, tuple(picture.texts), num_empty=picture.num_empty)
        elif picture.num_empty:
            yield BadItem(place, "empty text")

    def _wanted(self, pictures, listed, missing):
        """Names of the pictures that are in the list; what is found is taken out of `missing`.

        A line is a name, perhaps with a number behind it, and either of the two names may have more folders before it.
        Raises ValueError where a line may be several pictures.
        """
        alike, found = collections.defaultdict(set), set()
        for name in filter(None, (picture.name for picture in pictures)):
            alike[os.path.basename(name)].add(name)
        for number, line in listed:
            for asked in (line, re.sub(r"\s+\d+$", "", line)):
                names = {name for name in alike[os.path.basename(asked)]
                         if f"/{name}".endswith(f"/{asked}") or f"/{asked}".endswith(f"/{name}")}  # fmt: skip
                names = names & {asked} or names
                if len(names) > 1:
                    one, other = sorted(names)[:2]
                    raise ValueError(f"{self.image_list}:{number}: {asked} may be {one} or {other}")
                if names:
                    found |= names
                    missing.pop(number, None)
                    break
        return found

    def _splits(self):
        return {split.strip() for split in self.karpathy_splits.split(",")}

    def _read(self, path):
        """What coco_captions.read says. Raises ValueError where a split that is asked for is not there."""
        pictures, bad = coco_captions.read(path)
        splits = {picture.split for picture in pictures}
        if self.karpathy_splits and not self._splits() <= splits:
            there = ", ".join(sorted(splits - {None})) or "none, only Karpathy's json has them"
            raise ValueError(f"--karpathy_splits={self.karpathy_splits}: the splits of {path} are: {there}")
        return pictures, bad
