"""Pictures in a folder, each with the texts of the file beside it or of a file of captions, if there are any."""

import collections
import dataclasses
import os

from itit import storage
from itit.config import knob
from tools.data.sources import caption_file, names
from tools.data.sources.item import BadItem, Blob, Item, Passed, digest


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures, with x.txt beside x.jpg where there is a text. A .txt without a picture is passed over."""

    input: str = knob("", "Folder of pictures, with all that is below it.")
    captions: str = knob("", "File of captions, too: .csv, .tsv, .jsonl or .json that names pictures of the folder.")
    image_column: str = knob("", "Its column of the pictures; empty: image, file_name, filename, file, path, "
                             "image_path, whichever is there.")  # fmt: skip
    text_column: str = knob("", "Its column of the texts; empty: caption, text, captions, description.")

    def parts(self):
        """The folder, and what tells its files."""
        if not self.input:
            raise ValueError("--input is empty: give a folder of pictures")
        captions = storage.stamps(self.captions).values() if self.captions and storage.exists(self.captions) else ()
        return {self.input: digest([*captions, *storage.list_files(self.input)])}

    def items(self, part):
        """Yields Items in the order of their names, BadItems and what is Passed. The id is the picture's path in the
        folder."""
        root = part.rstrip("/") or "/"
        paths = [path for path in storage.list_files(root) if not names.is_leftover(path[len(root) :])]
        paths = [path for path in paths if not self._is_captions(path)]
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
        captions, num_empty, bad = {}, 0, []
        if self.captions:
            captions, num_empty, bad = caption_file.read(self.captions, root, self.image_column, self.text_column)
        for path in paths:
            item = self._item(root, path, texts, kinds, captions.get(path, ()))
            if isinstance(item, Item):
                item, num_empty = dataclasses.replace(item, num_empty=num_empty), 0  # of the file: with the first
            if item:
                yield item
        yield from bad

    def _is_captions(self, path):
        return bool(self.captions) and os.path.normpath(path) == os.path.normpath(self.captions)

    def _item(self, root, path, texts, kinds, captions):
        """What a file gives; nothing, where it is the text beside a picture."""
        stem, suffix = names.split(path)
        beside, read = texts.get(stem, []), any(map(names.is_picture, kinds[stem]))
        if names.is_picture(suffix):
            if len(beside) > 1:
                return BadItem(path, f"two texts beside it: {beside[0]} and {beside[1]}")
            return Item(path[len(root.rstrip("/")) + 1 :], path, Blob(path), (*map(Blob, beside), *captions))
        if names.is_other_picture(suffix) and (beside or captions) and not read:
            return BadItem(path, f"{names.NOT_READ}, and there is a text for it")
        if suffix == ".txt" and read:
            return None
        return Passed(path, ".txt without a picture" if suffix == ".txt" else suffix or "without a suffix")
