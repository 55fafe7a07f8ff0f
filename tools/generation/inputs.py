"""What the tools that use a model are given: prompts and pictures, from files, folders, TFRecord shards, COCO's json.

Shapes: S side of a picture in pixels.
"""

import collections
import contextlib
import functools
import hashlib
import os
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

from itit import storage
from itit.config import DataConfig
from itit.data import images, records
from tools.data import coco_json
from tools.data.sources import lines, lookup, names

_NUMBER = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d+)")  # COCO_val2014_000000000042.jpg, 000000000042.jpg
_CAPTION = re.compile(r"(\d+)/\d+")  # key of one of the captions of a picture of COCO
_OF_SEVERAL = re.compile(r"(.+)/(0|[1-9]\d*)")  # of any picture with several


class BadPicture(ValueError):
    """A picture that cannot be read. The message is `name: cause`."""


class Prompt(NamedTuple):
    """A text, and which picture it describes, where that is known."""

    text: str
    image_id: int | str | None = None


class Picture(NamedTuple):
    """`image_id`: COCO's number where there is one, else the name; no two pictures have the same one. `read`: () ->
    bytes of the encoded picture. `texts`: () -> what is said of it, list of str."""

    name: str
    image_id: int | str
    read: Callable
    texts: Callable = list


class _Found(NamedTuple):
    """A picture before its id is settled. `ids`: what may be it, the best first; the last is nobody else's. `content`:
    the same for records of one picture."""

    name: str
    ids: tuple
    content: str
    read: Callable
    texts: Callable


def _raise(error):
    raise error


# ---------------------------------------------------------------------------------------------- prompts


def prompts(source):
    """list of Prompt: one a line of a .txt, one an annotation of COCO's .json, one a record of shards with `text`.

    Raises ValueError, one line, where there is none or something is damaged.
    """
    if source.lower().endswith(".json"):
        found = [Prompt(entry["caption"], entry["image_id"]) for entry in coco_json.annotations(source)]
    elif source.lower().endswith(".txt"):
        found = [Prompt(line) for _, line in lines.read(source)]
    else:
        found = [prompt for path in storage.glob(source) for prompt in _texts(path)]
    if not found:
        raise ValueError(f"{source}: holds no text")
    return found


def _texts(path):
    for offset, features in _examples(path, _raise):
        values = features.get("text")
        if not isinstance(values, list) or len(values) != 1:
            raise records.BadRecord(path, offset, "holds no text ('text')")
        yield Prompt(_utf8(f"{path}:{offset}", values[0]), _id_of(_key_of(features)))


def _utf8(place, data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{place}: not UTF-8") from None


# ---------------------------------------------------------------------------------------------- pictures


def pictures(source, folder="", bad=_raise):
    """list of Picture, each once: of a folder with all that is below it, of patterns of picture files or of TFRecord
    shards with `image` (there one may have several captions), or of COCO's .json, whose pictures lie in `folder`.

    `bad` takes the ValueError of one that is not there and of a damaged record; by default it is raised. Raises
    ValueError where there is no picture.
    """
    if not source.lower().endswith(".json"):
        return list({picture.image_id: picture for picture in reversed(find(source, bad))}.values())[::-1]
    if not folder:
        raise ValueError(f"{source}: give the folder of its pictures, --images=DIR")
    listed, files, found = coco_json.file_names(source), lookup.Lookup(folder, "images"), []
    lone = lookup.lone(listed.values())
    for image_id, name in listed.items():
        try:
            path = files.find(name, lone)
            found.append(Picture(name, image_id, functools.partial(storage.read_bytes, path)))
        except ValueError as error:
            bad(BadPicture(f"{source}: image {image_id}: {error}"))
    return found or _raise(ValueError(f"{source}: none of its pictures is in {folder}"))


def references(source):
    """image_id, as `pictures` gives it, -> what is said of the picture, list of str: of a folder the text of x.txt
    beside x.jpg, of TFRecord shards `text` of all records of the picture. Pictures without a text are left out.

    Raises ValueError where no picture has one.
    """
    found = {}
    for picture in find(source):
        if texts := [text for text in picture.texts() if text]:
            found.setdefault(picture.image_id, []).extend(texts)
    return found or _raise(ValueError(f"{source}: no picture has a text: x.txt beside x.jpg, or 'text' in its record"))


def find(pattern, bad=_raise):
    """list of Picture: all that a folder or patterns hold, in the order of names. `bad`: as `pictures` takes it.

    What of a folder are pictures of kinds that are not read is passed over and counted on stderr.
    """
    folder = pattern if os.path.isdir(pattern) else None
    paths = storage.list_files(folder) if folder else storage.glob(pattern)
    found, passed = [], collections.Counter()
    for path in (path for path in paths if not names.is_leftover(os.path.relpath(path, folder) if folder else "")):
        suffix = names.split(path)[1]
        if names.is_picture(suffix):
            found.append(_file(path, os.path.relpath(path, folder) if folder else os.path.basename(path)))
        elif folder:
            passed[suffix] += names.is_other_picture(suffix)
        elif names.is_other_picture(suffix):
            raise ValueError(f"{path}: {names.NOT_READ}")
        else:
            found += _records(path, bad)
    passed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(passed.items()) if count)
    if not found:
        but = f", but {passed}" if passed else ""
        raise ValueError(f"{pattern}: no pictures ({names.KINDS}) and no TFRecord shards{but}")
    if passed:
        print(f"{pattern}: passed over: {passed}", file=sys.stderr)
    return _settled(found)


def _settled(found):
    """list of Picture: each has its best id that no other picture wants."""
    levels = [0] * len(found)
    while True:
        wanted = collections.defaultdict(set)
        for one, level in zip(found, levels, strict=True):
            wanted[one.ids[level]].add(one.content)
        again = [place for place, one in enumerate(found)
                 if len(wanted[one.ids[levels[place]]]) > 1 and levels[place] < len(one.ids) - 1]  # fmt: skip
        if not again:
            return [Picture(one.name, one.ids[level], one.read, one.texts)
                    for one, level in zip(found, levels, strict=True)]  # fmt: skip
        for place in again:
            levels[place] += 1


def load(picture, image_size):
    """uint8 [S, S, 3]. Raises BadPicture."""
    with _naming(picture):
        return images.decode(picture.read(), image_size, DataConfig.max_image_pixels)


def size(picture):
    """(width, height) as the file says. Raises BadPicture."""
    with _naming(picture):
        return images.open_picture(picture.read(), DataConfig.max_image_pixels).size


@contextlib.contextmanager
def _naming(picture):
    try:
        yield
    except FileNotFoundError:
        raise BadPicture(f"{picture.name}: not there any more") from None
    except ValueError as error:
        raise BadPicture(f"{picture.name}: {error}") from None


def _file(path, name):
    number = _NUMBER.fullmatch(os.path.splitext(name)[0])
    ids = (int(number[1]), name, path) if number else (name, path)
    return _Found(name, ids, path, functools.partial(storage.read_bytes, path), functools.partial(_beside, path))


def _beside(path):
    """The text of x.txt beside x.jpg, in a list; none where there is none."""
    beside = names.split(path)[0] + ".txt"
    return [_utf8(beside, storage.read_bytes(beside)).strip()] if storage.exists(beside) else []


def _records(path, bad):
    for offset, features in _examples(path, bad):
        name, place, key = f"{os.path.basename(path)}:{offset}", f"{path}:{offset}", _key_of(features)
        several = _OF_SEVERAL.fullmatch(key or "")  # another picture's id, perhaps: then the key is the next choice
        ids = (*([_id_of(several[1] if several else key), key] if key is not None else []), name, place)
        image = features.get("image")
        content = hashlib.sha256(b"".join(image)).hexdigest() if isinstance(image, list) else place
        texts = [_utf8(place, text).strip() for text in features.get("text", ())]
        yield _Found(name, ids, content, functools.partial(_image, path, offset, features["length"]), texts.copy)


def _image(path, offset, length):
    value = records.decode_example(records.read(path, offset, length)).get("image")
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError("holds no picture ('image')")
    return value[0]


# ---------------------------------------------------------------------------------------------- records


def _examples(path, bad):
    """Yields (offset, features with the payload's "length") of each record; `bad` takes the BadRecord of others."""
    spans, broken = records.scan(path)
    for offset, length in spans.tolist():
        try:
            features = records.decode_example(records.read(path, offset, length))
        except records.BadRecord as error:
            bad(error)
        except ValueError as error:
            bad(records.BadRecord(path, offset, error))
        else:
            yield offset, features | {"length": length}
    if broken:
        bad(broken)


def _key_of(features):
    """The record's "key", or None."""
    value = features.get("key")
    return value[0].decode(errors="replace") if isinstance(value, list) and len(value) == 1 else None


def _id_of(key):
    """A key; an int where it is a number, also one with the number of a caption behind it. None stays None."""
    if key is None:
        return None
    caption = _CAPTION.fullmatch(key)
    key = caption[1] if caption else key
    return int(key) if key.isdecimal() else key
