"""What the tools that use a model are given: prompts and pictures, from files, folders, TFRecord shards, COCO's json.

Shapes: S side of a picture in pixels.
"""

import functools
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from itit import storage
from itit.config import DataConfig
from itit.data import images, records
from tools import coco_json

_NUMBER = re.compile(r"(?:COCO_[a-z]+\d+_)?(\d+)")  # COCO_val2014_000000000042.jpg, 000000000042.jpg
_CAPTION = re.compile(r"(\d+)/\d+")  # key of one of the captions of a picture of COCO


class Prompt(NamedTuple):
    """A text, and which picture it describes, where that is known."""

    text: str
    image_id: int | str | None = None


class Picture(NamedTuple):
    """`image_id`: COCO's number where there is one, else the name. `read`: () -> bytes of the encoded picture."""

    name: str
    image_id: int | str
    read: Callable


# ---------------------------------------------------------------------------------------------- prompts


def prompts(source):
    """list of Prompt: one a line of a .txt, one an annotation of COCO's .json, one a record of shards with `text`.

    Raises ValueError, one line, where there is none or something is damaged.
    """
    if source.lower().endswith(".json"):
        found = [Prompt(entry["caption"], entry["image_id"]) for entry in coco_json.annotations(source)]
    elif source.lower().endswith(".txt"):
        lines = _utf8(source, storage.read_bytes(source)).splitlines()
        found = [Prompt(line.strip()) for line in lines if line.strip()]
    else:
        found = [prompt for path in storage.glob(source) for prompt in _texts(path)]
    if not found:
        raise ValueError(f"{source}: holds no text")
    return found


def _texts(path):
    for offset, features in _examples(path):
        values = features.get("text")
        if not isinstance(values, list) or len(values) != 1:
            raise records.BadRecord(path, offset, "holds no text ('text')")
        yield Prompt(_utf8(f"{path}:{offset}", values[0]), _id_of(features))


def _utf8(place, data):
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{place}: not UTF-8") from None


# ---------------------------------------------------------------------------------------------- pictures


def pictures(source, folder=""):
    """list of Picture, each image_id once: of a folder with all that is below it, of patterns of picture files or of
    TFRecord shards with `image`, or of COCO's .json, whose pictures lie in `folder`.

    Raises ValueError where there is none, one is not there, or a shard is damaged.
    """
    if source.lower().endswith(".json"):
        if not folder:
            raise ValueError(f"{source}: give the folder of its pictures, --images=DIR")
        names = coco_json.file_names(source)
        found = [_file(storage.join(folder, name), name, image_id) for image_id, name in names.items()]
        for picture in found:
            if not storage.exists(storage.join(folder, picture.name)):
                raise ValueError(f"{storage.join(folder, picture.name)}: not there, and {source} names it")
    else:
        found = find(source)
    return list({picture.image_id: picture for picture in reversed(found)}.values())[::-1]


def find(pattern):
    """list of Picture: all that a folder or patterns hold, in the order of names."""
    folder = pattern if os.path.isdir(pattern) else None
    found = []
    for path in storage.glob(storage.join(folder, "**", "*") if folder else pattern):
        if path.lower().endswith(images.SUFFIXES):
            found.append(_file(path, os.path.relpath(path, folder) if folder else os.path.basename(path)))
        elif not folder:
            found += _records(path)
    if not found:
        raise ValueError(f"{pattern}: no pictures ({', '.join(images.SUFFIXES)}) and no TFRecord shards")
    return found


def load(picture, image_size):
    """uint8 [S, S, 3]. Raises ValueError naming the picture."""
    try:
        return images.decode(picture.read(), image_size, DataConfig.max_image_pixels)
    except ValueError as error:
        raise ValueError(f"{picture.name}: {error}") from None


def _file(path, name, image_id=None):
    number = _NUMBER.fullmatch(os.path.splitext(name)[0])
    if image_id is None:
        image_id = int(number[1]) if number else name
    return Picture(name, image_id, functools.partial(storage.read_bytes, path))


def _records(path):
    for offset, features in _examples(path):
        name = f"{os.path.basename(path)}:{offset}"
        image_id = _id_of(features)
        yield Picture(
            name, name if image_id is None else image_id, functools.partial(_image, path, offset, features["length"])
        )


def _image(path, offset, length):
    value = records.decode_example(records.read(path, offset, length)).get("image")
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError("holds no picture ('image')")
    return value[0]


# ---------------------------------------------------------------------------------------------- records


def _examples(path):
    """Yields (offset, features with the payload's "length") of each record. Raises BadRecord."""
    for offset, length in records.index(path).tolist():
        payload = records.read(path, offset, length)
        try:
            yield offset, records.decode_example(payload) | {"length": length}
        except ValueError as error:
            raise records.BadRecord(path, offset, error) from None


def _id_of(features):
    """The record's "key", or None; an int where it is a number, also one with the number of a caption behind it."""
    value = features.get("key")
    if not isinstance(value, list) or len(value) != 1:
        return None
    key = value[0].decode(errors="replace")
    caption = _CAPTION.fullmatch(key)
    key = caption[1] if caption else key
    return int(key) if key.isdecimal() else key
