"""Tar files of KEY.jpg, KEY.txt and KEY.json, as img2dataset and webdataset write them. Nothing is ever unpacked."""

import dataclasses
import itertools
import os
import tarfile

from itit import storage
from itit.config import knob
from itit.data.images import SUFFIXES
from tools.sources.item import MAX_PICTURE, MAX_TEXT, BadItem, Blob, Item


@dataclasses.dataclass(frozen=True)
class Webdataset:
    """Pictures of tar files, with the text of KEY.txt, or else of a field of KEY.json."""

    input: str = knob("", "Tar files, not compressed; patterns, separated by commas.")
    json_field: str = knob("caption", "Field of KEY.json that is the text where there is no KEY.txt.")

    def items(self):
        """Yields one Item a key, and BadItems. The id is TAR/KEY, TAR without its suffix."""
        if not self.input:
            raise ValueError("--input is empty: give tar files")
        for path in storage.glob(self.input):
            stem = os.path.basename(path).removesuffix(".tar")
            for key, members in itertools.groupby(_members(path), key=lambda member: member[0]):
                yield self._item(f"{stem}/{key}", f"{path}: {key}", [member[1:] for member in members])

    def _item(self, key, place, members):
        blobs = {}
        for suffix, value in members:
            if isinstance(value, BadItem):
                return value
            if suffix in blobs:
                return BadItem(place, f"two members {suffix}")
            blobs[suffix] = value
        images = [blobs[suffix] for suffix in SUFFIXES if suffix in blobs]
        text = blobs.get(".txt")
        if not text and ".json" in blobs and self.json_field:
            text = dataclasses.replace(blobs[".json"], field=self.json_field)
        if not images and not text:
            return BadItem(place, f"neither picture nor text, only {', '.join(blobs)}")
        return Item(key, place, images[0] if images else None, (text,) if text else ())


def _members(path):
    """Yields (key, suffix, Blob or BadItem) of each file in a tar, in its order."""
    try:
        with storage.open(path) as raw, tarfile.open(fileobj=_Headers(raw), mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # it would keep them all
                if member.isdir():
                    continue
                folder, name = os.path.split(member.name)
                stem, dot, suffix = name.partition(".")
                key, suffix, cause = os.path.join(folder, stem), dot + suffix.lower(), _wrong(member)
                if cause:
                    yield key, suffix, BadItem(f"{path}@{member.offset}", cause)
                else:
                    yield key, suffix, Blob(path, member.offset_data, member.size)
            # To tarfile, a broken header is the end.
            raw.seek(tar.offset)
            if any(block := raw.read(tarfile.BLOCKSIZE)) or len(block) % tarfile.BLOCKSIZE:
                raise ValueError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, ValueError) as error:
        yield "", "", BadItem(path, f"the tar is damaged, the rest of it is lost: {error}")


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
