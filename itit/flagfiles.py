"""Flagfiles: plain text, a flag a line; lines that begin with # or // are comments.

One that is named in a flagfile (`--flagfile=common.cfg`) is looked for beside that file, wherever the command is typed.
absl's own would look for it in the current folder.
"""

import os
import re

from itit import storage

MAX_DEPTH = 20


def expand(arguments):
    """Arguments of a command with the lines of each `--flagfile` in its place. Those after `--` are no flags.

    Raises ValueError, one line, for a flagfile that is not there, is no text, or leads back to itself.
    """
    return [argument for argument, _ in _placed(arguments)]


def places(arguments):
    """Flag -> the flagfile that gives its value, of flags whose value is from one. Raises as `expand` does."""
    found = {}
    for argument, path in _placed(arguments):
        if name := re.match(r"--?(\w+)", argument):
            found[name[1]] = path
    return {name: path for name, path in found.items() if path}


def read(path):
    """The flags of a flagfile, local or on gs://, with those of the files that it names: list of str.

    Raises as `expand` does.
    """
    return [line for line, _ in _lines(path)]


def _placed(arguments):
    """Yields (argument, the flagfile that it stands in or "")."""
    rest = iter(arguments)
    for argument in rest:
        name, is_given, path = argument.partition("=")
        if argument == "--":
            yield from ((word, "") for word in (argument, *rest))
        elif name not in ("--flagfile", "-flagfile"):
            yield argument, ""
        else:
            path = path if is_given else next(rest, "")
            if not path:
                raise ValueError("--flagfile: must name a file")
            yield from _lines(os.path.expanduser(path))


def _lines(path, named_by=()):
    """Yields (line, flagfile that it stands in). `named_by`: the flagfiles that lead to it, the outermost first."""
    if len(named_by) == MAX_DEPTH:
        raise ValueError(f"{named_by[0]}: leads through {MAX_DEPTH} flagfiles to {path}: does one name itself?")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        hint = f": {named_by[-1]} names it, and what a flagfile names is looked for beside it" if named_by else ""
        raise ValueError(f"{path}: no such flagfile{hint}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip()
        name, _, inner = line.partition("=")
        if name in ("--flagfile", "-flagfile"):
            yield from _lines(_beside(path, os.path.expanduser(inner)), (*named_by, path))
        elif line and not line.startswith(("#", "//")):
            yield line, path


def _beside(path, name):
    return name if storage.is_remote(name) else storage.join(os.path.dirname(path), name)
