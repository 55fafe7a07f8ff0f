"""Files of folders by the names that a list gives them. No file is ever taken by chance."""

import os

from itit import storage


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
        where the last part of the name is no other name's (`lone`), where that part is.

        Raises ValueError where there is none, or more than one.
        """
        name = os.path.normpath(name.replace("\\", "/"))
        alike = list(self._paths.get(os.path.basename(name), ()))
        exact = [path for path in alike if path in {storage.join(root, name) for root in self._roots}]
        found = exact or [path for path in alike if ("/" + path).endswith("/" + name)] or (alike if lone else [])
        if not found:
            raise ValueError(f"no file {name} in {self._given}")
        if len(found) > 1:
            raise ValueError(f"the name {name} may be {found[0]} or {found[1]}: name the folder that it lies in")
        return found[0]
