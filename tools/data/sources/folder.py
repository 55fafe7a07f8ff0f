"""Pictures in a folder, each with the text of the file beside it, if there is one."""

import collections
import dataclasses

from itit import storage
from itit.config import knob
from tools.data.sources import names
from tools.data.sources.item import BadItem, Blob, Item, Passed, digest


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures, with x.txt beside x.jpg where there is a text. A .txt without a picture is passed over."""

    input: str = knob("", "Folder of pictures, with all that is below it.")

    def parts(self):
        """The folder, and what tells its files."""
        if not self.input:
            raise ValueError("--input is empty: give a folder of pictures")
        return {self.input: digest(storage.list_files(self.input))}

    def items(self, part):
        """Yields Items in the order of their names, BadItems and what is Passed. The id is the picture's path in the
        folder."""
        root = part.rstrip("/") or "/"
        paths = [path for path in storage.list_files(root) if not names.is_leftover(path[len(root) :])]
        texts, kinds = collections.defaultdict(list), collections.defaultdict(set)
        for path in paths:
            stem, suffix = names.split(path)
            kinds[stem].add(suffix)
            if suffix == ".txt":
                texts[stem].append(path)
        if not any(map(names.is_picture, (suffix for found in kinds.values() for suffix in found))):
            if not paths:
                raise ValueError(f"--input={self.input}: no such folder, or no file in it")
            there = ", ".join(sorted({suffix or "files without one" for found in kinds.values() for suffix in found}))
            raise ValueError(f"--input={self.input}: no pictures ({names.KINDS}), but {there}")
        yield from filter(None, (self._item(root, path, texts, kinds) for path in paths))

    def _item(self, root, path, texts, kinds):
        """What a file gives; nothing, where it is the text beside a picture."""
        stem, suffix = names.split(path)
        beside, read = texts.get(stem, []), any(map(names.is_picture, kinds[stem]))
        if names.is_picture(suffix):
            if len(beside) > 1:
                return BadItem(path, f"two texts beside it: {beside[0]} and {beside[1]}")
            return Item(path[len(root.rstrip("/")) + 1 :], path, Blob(path), tuple(map(Blob, beside)))
        if names.is_other_picture(suffix) and beside and not read:
            return BadItem(path, f"{names.NOT_READ}, and there is a text for it")
        if suffix == ".txt" and read:
            return None
        return Passed(path, ".txt without a picture" if suffix == ".txt" else suffix or "without a suffix")
