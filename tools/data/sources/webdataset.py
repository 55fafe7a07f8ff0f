"""Tar files of KEY.jpg, KEY.txt and KEY.json, as img2dataset and webdataset write them.

KEY is the name up to its first dot, as webdataset has it, and what follows may have further dots: KEY.0.jpg and
KEY.0.txt are a pair of that key. A picture and a text whose names differ there are never put together.
"""

import collections
import dataclasses
import os
import re

from itit import storage
from itit.config import knob
from itit.data.images import SUFFIXES
from tools.data.sources import names, tar
from tools.data.sources.item import BadItem, Item, Passed


@dataclasses.dataclass(frozen=True)
class Webdataset:
    """Pictures of tar files, with the text of KEY.txt, or else of a field of KEY.json."""

    input: str = knob("", "Tar files, not compressed; patterns, separated by commas.")
    json_field: str = knob("caption", "Field of KEY.json that is the text where there is no KEY.txt.")

    def parts(self):
        """The tars, and what tells each."""
        if not self.input:
            raise ValueError("--input is empty: give tar files")
        return storage.stamps(self.input)

    def items(self, part):
        """Yields Items in the order of the keys' first members, BadItems and what is Passed. The id is TAR/KEY, TAR
        without its suffix.

        The members of a key may lie apart: what a tar holds is listed whole, some 0.5 KB of memory a member.
        """
        keys, damage = collections.defaultdict(list), []
        for name, value in tar.members(part):
            if name is None:
                damage.append(value)
            elif not names.is_leftover(name):
                folder, base = os.path.split(name)
                keys[os.path.join(folder, base.partition(".")[0])].append((name, value))
        stem = re.sub(r"\.tar$", "", os.path.basename(part), flags=re.IGNORECASE)
        for key, members in keys.items():
            yield from self._items(part, stem, key, members)
        yield from damage

    def _items(self, path, stem, key, members):
        """Yields what the members of a key give."""
        place, groups = f"{path}: {key}", {}
        for name, value in members:
            whole, suffix = names.split(name)
            group = groups.setdefault(whole, {})
            if isinstance(value, BadItem) or suffix in group:
                yield value if isinstance(value, BadItem) else BadItem(f"{path}: {whole}", f"two members {suffix}")
                return
            group[suffix] = value
        shown = [whole for whole, group in groups.items() if set(group) & set(SUFFIXES)]
        told = [whole for whole, group in groups.items() if self._text(group)]
        alone = {"shown": [w for w in shown if w not in told], "told": [w for w in told if w not in shown]}
        if not shown and not told:
            yield BadItem(place, "neither picture nor text, only " + ", ".join(n[len(key) :] or n for n, _ in members))
        elif not shown and any(names.is_other_picture(suffix) for group in groups.values() for suffix in group):
            yield BadItem(place, f"{names.NOT_READ}, and there is a text for it")
        elif alone["shown"] and alone["told"]:
            one, other = alone["shown"][0], alone["told"][0]
            yield BadItem(place, f"whether the text of {other} is of the picture {one} cannot be told: both must have "
                          f"one name up to the last dot")  # fmt: skip
        else:
            yield from self._grouped(path, stem, key, groups, shown, told)

    def _grouped(self, path, stem, key, groups, shown, told):
        """Yields an Item a group; beside KEY.jpg, other pictures of the key without texts (masks) are passed over."""
        for whole, group in groups.items():
            images, text = [suffix for suffix in SUFFIXES if suffix in group], self._text(group)
            extra = key in shown and whole != key and whole not in told or shown and whole not in shown
            if (images or text) and not extra:
                image = group[images[0]] if images else None
                yield Item(f"{stem}/{whole}", f"{path}: {whole}", image, (text,) if text else ())
            used = {".json", ".txt", *images[:1]} if not extra else {".json"}
            for suffix in group:
                if suffix not in used:
                    yield Passed(f"{path}: {whole}{suffix}", suffix or "without a suffix")

    def _text(self, group):
        """The Blob of a group's text, or None."""
        if ".txt" in group or ".json" not in group or not self.json_field:
            return group.get(".txt")
        return dataclasses.replace(group[".json"], field=self.json_field)
