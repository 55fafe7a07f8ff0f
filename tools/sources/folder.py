"""Pictures in a folder, each with the text of the file beside it, if there is one."""

import dataclasses

from itit import storage
from itit.config import knob
from itit.data.images import SUFFIXES
from tools.sources.item import Blob, Item


@dataclasses.dataclass(frozen=True)
class Folder:
    """Pictures, with x.txt beside x.jpg where there is a text. A .txt without a picture is passed over."""

    input: str = knob("", "Folder of pictures, with all that is below it.")

    def items(self):
        """Yields Items in the order of their names. The id is the picture's path in the folder."""
        if not self.input:
            raise ValueError("--input is empty: give a folder of pictures")
        root = self.input.rstrip("/")
        paths = storage.glob(storage.join(root, "**", "*"))
        texts, found = {path for path in paths if path.endswith(".txt")}, False
        for path in paths:
            if path.lower().endswith(SUFFIXES):
                found, text = True, path.rpartition(".")[0] + ".txt"
                yield Item(path[len(root) + 1 :], path, Blob(path), (Blob(text),) if text in texts else ())
        if not found:
            raise ValueError(f"--input={self.input}: no pictures ({', '.join(SUFFIXES)})")
