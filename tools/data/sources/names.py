"""What a file is by its name: a picture, a text, something that a system has left, or something else."""

import os

from itit.data.images import OTHER_SUFFIXES, SUFFIXES

KINDS = ", ".join(SUFFIXES)
NOT_READ = f"pictures of this kind are not read, only {KINDS}"


def split(path):
    """(path without its last suffix, that suffix in small letters with its dot, or "")."""
    stem, suffix = os.path.splitext(path)
    return stem, suffix.lower()


def is_picture(suffix):
    """Whether files of this suffix are pictures that are read."""
    return suffix in SUFFIXES


def is_other_picture(suffix):
    """Whether files of this suffix are pictures that are not read."""
    return suffix in OTHER_SUFFIXES


def is_leftover(path):
    """Whether a file is no data of anybody: of macOS (`._x`, `.DS_Store`, `__MACOSX`), of Windows, or hidden; and what
    webdataset keeps for itself (`__x__`, `__x__.json`)."""
    *folders, name = [part for part in path.split("/") if part not in ("", ".", "..")] or [""]
    key = name.partition(".")[0]
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in (*folders, name))
    return hidden or name.lower() in ("thumbs.db", "desktop.ini") or key.startswith("__") and key.endswith("__")
