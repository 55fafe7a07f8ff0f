"""Members of tar files where they lie, archive after archive. Nothing is ever unpacked."""

import tarfile

from itit import storage
from itit.data import records
from itit.data.images import SUFFIXES
from tools.data.sources.item import MAX_PICTURE, MAX_TEXT, BadItem, Blob

PIECE = 2**16  # bytes read at once where zeros are expected


def members(path):
    """Yields (name, Blob or BadItem) of each file in a tar, in its order; of a tar that is damaged, at last, (None,
    BadItem). Archives that were joined into one file are read one after another."""
    try:
        with storage.open(path) as raw:
            if packed := records.packing(raw.read(8)):
                raise ValueError(f"it is compressed ({packed}): unpack it first, members are read in place")
            start = 0
            while start is not None:
                raw.seek(start)
                with tarfile.open(fileobj=_Headers(raw), mode="r:") as tar:
                    while member := tar.next():
                        tar.members = []  # it would keep them all
                        if not member.isdir():
                            yield member.name, _blob(path, member)
                # To tarfile, a broken header is the end.
                start = _next_archive(raw, tar.offset)
    except (tarfile.TarError, ValueError) as error:
        yield None, BadItem(path, f"the tar is damaged, the rest of it is lost: {error}")


def _next_archive(raw, end):
    """Where the next archive begins behind the members of one, which end at `end`; None where only zeros follow.

    Raises ValueError where something else follows at once.
    """
    raw.seek(end)
    place = end
    while data := raw.read(PIECE):
        if rest := data.lstrip(b"\0"):
            found = place + len(data) - len(rest)
            found -= (found - end) % tarfile.BLOCKSIZE
            if found == end:
                raise ValueError(f"no header at byte {end}")
            return found
        place += len(data)
    return None


def _blob(path, member):
    cause = _wrong(member)
    return BadItem(f"{path}@{member.offset}", cause) if cause else Blob(path, member.offset_data, member.size)


def _wrong(member):
    """What forbids to use a member, or ''."""
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\\" in member.name or "\0" in member.name:
        return f"the name {member.name!r} leads out of the tar"
    if not member.isreg() or member.issparse():
        return f"{member.name!r} is no plain file"
    limit = MAX_PICTURE if member.name.lower().endswith(SUFFIXES) else MAX_TEXT
    if member.size > limit and member.name.lower().endswith((*SUFFIXES, ".txt", ".json")):
        return f"{member.name!r} has {member.size} bytes, above the limit of {limit}"
    return ""


class _Headers:
    """A file for tarfile, which reads only headers from it: one that claims to be large is refused unread."""

    def __init__(self, raw):
        self._raw, self.seek, self.tell = raw, raw.seek, raw.tell

    def read(self, size):
        if size > MAX_TEXT:
            raise ValueError(f"a header of {size} bytes, above the limit of {MAX_TEXT}")
        return self._raw.read(size)
