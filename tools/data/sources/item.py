"""What a source lists: pictures with their texts, as places to read from. Listing is cheap; workers do the reading."""

import contextlib
import dataclasses
import hashlib
import json

from itit import storage

MAX_TEXT = 2**20  # bytes of a text, of a line, and of the JSON beside a picture
MAX_PICTURE = 64 * 2**20  # bytes of an encoded picture
GAP = 2**16  # bytes between two places that are read at once


class BadItem(ValueError):
    """What cannot be used. The message is `place: cause`."""

    def __init__(self, place, cause):
        super().__init__(f"{place}: {cause}")


@dataclasses.dataclass(frozen=True)
class Passed:
    """What a source passes over, to be counted by `kind`: a suffix, for one."""

    place: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """`length` bytes of a file from `offset` on, or the whole file where `length` is None."""

    path: str
    offset: int = 0
    length: int | None = None
    field: str = ""  # the bytes are JSON, of which `text` gives this field

    def fields(self):
        """JSON values to make it again."""
        return self.path, self.offset, self.length, self.field

    def read(self, limit, held=()):
        """The bytes. `held`: what `read_together` has read. Raises ValueError where they are more than `limit` or the
        file is not there."""
        if self.length is not None and self.length > limit:
            raise ValueError(f"{self.length} bytes, above the limit of {limit}")
        try:
            if self in held:
                data = held[self]
            elif self.length is not None:
                data = storage.read_range(self.path, self.offset, self.length)
            else:
                with storage.open(self.path) as file:
                    data = file.read(limit + 1)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ValueError(f"no file {self.path}") from None
        if len(data) > limit:
            raise ValueError(f"{self.path}: above the limit of {limit} bytes")
        if self.length is not None and len(data) != self.length:
            raise ValueError(f"{self.path} ends inside it")
        return data

    def text(self, held=()):
        """The bytes as text; "" where the field is null. Raises ValueError where they are none."""
        data = self.read(MAX_TEXT, held)
        if not self.field:
            return utf8(data)
        found = parse_object(data)
        return "" if self.field in found and found[self.field] is None else string_of(found, self.field)


def read_together(blobs):
    """Blob -> bytes of those that lie close together in their file, which are read at once; of the others nothing."""
    found, inside = {}, (blob for blob in blobs if isinstance(blob, Blob) and blob.length is not None)
    run, end = [], 0
    for blob in [*sorted(set(inside), key=lambda blob: (blob.path, blob.offset)), None]:
        near = blob and run and blob.path == run[0].path and blob.offset - end <= GAP
        if near and max(end, blob.offset + blob.length) - run[0].offset <= MAX_PICTURE:
            run, end = [*run, blob], max(end, blob.offset + blob.length)
            continue
        if len(run) > 1:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
                data, first = storage.read_range(run[0].path, run[0].offset, end - run[0].offset), run[0].offset
                found |= {one: data[one.offset - first : one.offset - first + one.length] for one in run}
        run, end = ([blob], blob.offset + blob.length) if blob else ([], 0)
    return found


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture with its texts, or one of the two.

    Args:
      key: id, unique in its source.
      place: where it is listed, for messages.
      image: Blob of the encoded picture, or None.
      texts: of str or Blob; empty where there is only a picture.
      unit: items of the same unit are never split between unpaired pictures and unpaired texts; by default the key.
      num_empty: texts that the source has left out, for they are empty or null.
    """

    key: str
    place: str
    image: Blob | None = None
    texts: tuple = ()
    unit: str = ""
    num_empty: int = 0

    def load_texts(self, held=()):
        """(list of str, blanks trimmed to one; how many others are empty). Raises ValueError for what is no text."""
        texts = [" ".join(utf8(text if isinstance(text, str) else text.text(held)).split()) for text in self.texts]
        return [text for text in texts if text], texts.count("")


def everything(source):
    """All that a source lists, part after part."""
    return (item for part in source.parts() for item in source.items(part))


def digest(values):
    """A text that tells lists of texts apart."""
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]


def utf8(text):
    """bytes or str -> str that UTF-8 can hold, without its byte order mark. Raises ValueError."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        text.encode()
    except UnicodeError:
        raise ValueError("the text is not UTF-8") from None
    return text.removeprefix("\ufeff")


def parse_object(data):
    """bytes of JSON -> dict. Raises ValueError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {str(error) or type(error).__name__}") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def string_of(found, name):
    """A field of a dict that must be there and be a text. Raises ValueError."""
    if not isinstance(found.get(name), str):
        raise ValueError(f"no text under {name!r}; there are {', '.join(map(repr, found)) or 'no fields'}")
    return found[name]
