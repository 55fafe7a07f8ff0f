"""Files of folders by the names that a list gives them. No file is ever taken by chance."""

import collections
import os

from itit import storage


def lone(names):
    """Last parts of paths, of those that only one of the names ends with. `names`: what all lists together name."""
    count = collections.Counter(os.path.basename(name) for name in set(map(_tidy, names)))
    return {base for base, number in count.items() if number == 1}


def _tidy(name):
    return os.path.normpath(name.replace("\\", "/"))


class Lookup:
    """The files of some folders, with all that is below them.

    Args:
      folders: str, separated by commas; a folder whose own name has commas is one.
      flag: what to name in messages.

    Raises ValueError for a folder without files.
    """

    def __init__(self, folders, flag):
        whole = not storage.is_remote(folders) and os.path.isdir(folders)
        parts = [folders] if whole else [part.strip() for part in folders.split(",") if part.strip()]
        self._roots, self._given, self._paths = [part.rstrip("/") or "/" for part in parts], folders, {}
        for root in self._roots:
            paths = storage.list_files(root)
            if not paths:
                raise ValueError(f"--{flag}={folders}: {root} is no folder with pictures")
            for path in paths:
                self._paths.setdefault(os.path.basename(path), {})[path] = None  # one that lies in two roots, once

    def paths(self):
        """Of all files, sorted."""
        return sorted(path for alike in self._paths.values() for path in alike)

    def find(self, name, lone):
        """The path of a file.

        Where it is: `name` in one of the folders; or else where the path ends like `name`, folders and all; or else,
        where the last part of the name is in `lone` (see there), where that part is, but not in a folder below that
        the name does not tell of: the other file of that name may only be missing.

        Raises ValueError where there is none, or more than one.
        """
        name = _tidy(name)
        alike = list(self._paths.get(os.path.basename(name), ()))
        exact = [path for path in alike if path in {storage.join(root, name) for root in self._roots}]
        found = exact or [path for path in alike if ("/" + path).endswith("/" + name)]
        if not found and os.path.basename(name) in lone:
            found = [path for path in alike if "/" not in name or os.path.dirname(path) in self._roots]
        if not found:
            there = f"; in another folder there is {alike[0]}" if alike else ""
            raise ValueError(f"no file {name} in {self._given}{there}")
        if len(found) > 1:
            raise ValueError(f"the name {name} may be {found[0]} or {found[1]}: name the folder that it lies in")
        return found[0]
