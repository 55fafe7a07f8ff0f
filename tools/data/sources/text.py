"""Texts, one a line."""

import dataclasses
import os

from itit import storage
from itit.config import knob
from tools.data.sources import lines, names
from tools.data.sources.item import BadItem, Item


@dataclasses.dataclass(frozen=True)
class Text:
    """Files of texts, one a line; blank lines are passed over. Of a folder the .txt files, with all that is below."""

    input: str = knob("", "Files of texts, one a line, plain, .gz or .zst; a folder, or patterns, separated by commas.")

    def parts(self):
        """The files, and what tells each. Raises ValueError where there is none."""
        if not self.input:
            raise ValueError("--input is empty: give files of texts")
        if not os.path.isdir(self.input):
            return storage.stamps(self.input)
        inside = [path for path in storage.list_files(self.input)
                  if not names.is_leftover(os.path.relpath(path, self.input))]  # fmt: skip
        found = [path for path in inside if lines.OF_TEXT.search(path)]
        if not found:
            there = f"{len(inside)} other files" if inside else "nothing"
            raise ValueError(f"--input={self.input}: no .txt, .txt.gz or .txt.zst in this folder, but {there}")
        return {path: storage.stamps(path)[path] for path in found}

    def items(self, part):
        """Yields Items with one text each, and BadItems. The id is NAME:LINE."""
        root = f"{self.input.rstrip('/')}/" if os.path.isdir(self.input) else ""
        for number, line in lines.numbered(part):
            if isinstance(line, BadItem):
                yield line
            elif line.strip():
                name = f"{part.removeprefix(root) if root else os.path.basename(part)}:{number}"
                # What is not UTF-8 passes here as it is, and is refused where texts are read.
                yield Item(name, f"{part}:{number}", texts=(line.decode("utf-8", "surrogateescape"),))
