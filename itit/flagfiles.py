"""Flagfiles: plain text, a flag a line; lines that begin with # or // are comments.

One that is named in a flagfile (`--flagfile=common.cfg`) is looked for beside that file, wherever the command is typed.
absl's own would look for it in the current folder.
"""

import os

from itit import storage

MAX_DEPTH = 20


def expand(arguments):
    """Arguments of a command with the lines of each `--flagfile` in its place. Those after `--` are no flags.

    Raises ValueError, one line, for a flagfile that is not there, is no text, or leads back to itself.
    """
    expanded, rest = [], iter(arguments)
    for argument in rest:
        name, is_given, path = argument.partition("=")
        if argument == "--":
            return [*expanded, argument, *rest]
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        path = path if is_given else next(rest, "")
        if not path:
            raise ValueError("--flagfile: must name a file")
        expanded += read(os.path.expanduser(path))
    return expanded


def read(path, named_by=()):
    """The flags of a flagfile, local or on gs://, with those of the files that it names: list of str.

    Args:
      named_by: the flagfiles that lead to it, the outermost first.

    Raises as `expand` does.
    """
    if len(named_by) == MAX_DEPTH:
        raise ValueError(f"{named_by[0]}: leads through {MAX_DEPTH} flagfiles to {path}: does one name itself?")
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        hint = f": {named_by[-1]} names it, and what a flagfile names is looked for beside it" if named_by else ""
        raise ValueError(f"{path}: no such flagfile{hint}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    flags = []
    for line in text.replace("\r\n", "\n").split("\n"):
        line = line.strip()
        name, _, inner = line.partition("=")
        if name in ("--flagfile", "-flagfile"):
            flags += read(_beside(path, os.path.expanduser(inner)), (*named_by, path))
        elif line and not line.startswith(("#", "//")):
            flags.append(line)
    return flags


def _beside(path, name):
    return name if storage.is_remote(name) else storage.join(os.path.dirname(path), name)
