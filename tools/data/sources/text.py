"""Texts, one a line."""

import dataclasses
import os

from itit import storage
from itit.config import knob
from tools.data.sources import lines
from tools.data.sources.item import BadItem, Item


@dataclasses.dataclass(frozen=True)
class Text:
    """Files of texts, one a line; blank lines are passed over."""

    input: str = knob("", "Files of texts, one a line, plain, .gz or .zst; patterns, separated by commas.")

    def parts(self):
        """The files, and what tells each."""
        if not self.input:
            raise ValueError("--input is empty: give files of texts")
        return storage.stamps(self.input)

    def items(self, part):
        """Yields Items with one text each, and BadItems. The id is NAME:LINE."""
        for number, line in lines.numbered(part):
            if isinstance(line, BadItem):
                yield line
            elif line.strip():
                name = f"{os.path.basename(part)}:{number}"
                # What is not UTF-8 passes here as it is, and is refused where texts are read.
                yield Item(name, f"{part}:{number}", texts=(line.decode("utf-8", "surrogateescape"),))
