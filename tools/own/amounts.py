"""What one's own data are: how many pictures, how many of them with captions, and a fingerprint that shows changes."""

import contextlib
import dataclasses
import hashlib
import os

from itit import storage
from tools.data.sources import caption_file
from tools.data.sources.folder import Folder
from tools.data.sources.item import Blob, Item, everything
from tools.data.sources.text import Text

NAMES = ("captions", "metadata")  # of a file of captions in the folder itself
HEAD = 2**20  # bytes of a file of texts that are looked at


@dataclasses.dataclass(frozen=True)
class Amounts:
    """`pictures` in all, `pairs` of them with a caption."""

    pictures: int
    pairs: int
    fingerprint: str

    def __str__(self):
        return f"{self.pictures} pictures, {self.pairs} of them with captions (fingerprint {self.fingerprint})"


@contextlib.contextmanager
def _given():
    """Sources name a flag of theirs in messages, which is none here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).removeprefix("--input=")) from None


def of_pictures(folder, captions):
    """The Amounts of a local folder and its file of captions, or "". Names, bytes of captions and sizes of pictures
    make the fingerprint: not when a file was written, which a copy changes.

    Raises ValueError, one line, where there is no picture, or none with a caption.
    """
    digest, pictures, pairs = hashlib.sha256(), 0, 0
    with _given():
        items = [item for item in everything(Folder(folder, captions)) if isinstance(item, Item)]
    for item in items:
        pictures += 1
        pairs += bool(item.texts)
        texts = [text.path if isinstance(text, Blob) else text for text in item.texts]
        texts = [storage.read_bytes(text) if os.path.isfile(text) else text.encode() for text in texts]
        _add(digest, item.key.encode("utf-8", "surrogateescape"), b"%d" % os.path.getsize(item.image.path), *texts)
    if not pairs:
        raise ValueError(f"{folder}: {pictures} pictures, none with a caption: some dozens need one, in x.txt beside "
                         "x.jpg or in a file, --captions=FILE")  # fmt: skip
    return Amounts(pictures, pairs, digest.hexdigest()[:12])


def find_captions(folder):
    """The file of captions in a folder itself, by its name, or "". Raises ValueError where there are several."""
    kinds = (*caption_file.TABLES, ".json")
    found = [name for name in storage.list_dir(folder) if name.lower() in {a + b for a in NAMES for b in kinds}]
    if len(found) > 1:
        raise ValueError(f"{folder}: {' and '.join(found)} may be its captions: name one, --captions=FILE")
    return storage.join(folder, found[0]) if found else ""


def of_texts(given):
    """What files of texts are, in a line; given as `Text` takes them. Raises ValueError where there is none."""
    digest, total = hashlib.sha256(), 0
    with _given():
        paths = list(Text(given).parts())
    for path in paths:
        with storage.open(path) as file:
            _add(digest, os.path.basename(path).encode(), b"%d" % storage.size(path), file.read(HEAD))
        total += storage.size(path)
    count = f"{len(paths)} files" if len(paths) > 1 else "one file"
    return f"{count} of {total} bytes (fingerprint {digest.hexdigest()[:12]})"


def _add(digest, *parts):
    for part in parts:
        digest.update(b"%d " % len(part) + part)
