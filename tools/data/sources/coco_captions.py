"""The two forms of COCO's captions, the official one and Karpathy's. Entries that are damaged are named one by one."""

import json
import os
from typing import NamedTuple

from itit import storage
from tools.data.sources.item import BadItem


class Picture(NamedTuple):
    """What a json tells of a picture.

    `name`: its file, with what folders the json names, or None. `texts`: list of str, none empty; `num_empty`: how many
    others are empty or null. `bad`: list of BadItem, of its captions.
    """

    key: str
    name: str | None
    split: str | None
    texts: list
    num_empty: int
    bad: list


def read(path):
    """(list of Picture in the order of the json, list of BadItem that are of none).

    Raises ValueError, one line, where the json has neither form.
    """
    data = storage.read_bytes(path)
    try:
        found = json.loads(data)
        return _official(path, found) if "annotations" in found else _karpathy(path, found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: neither captions of COCO nor Karpathy's: {error!r}") from None


def _official(path, found):
    if found["annotations"] and not any("caption" in annotation for annotation in found["annotations"]):
        raise ValueError("no annotation has a 'caption'")
    pictures, bad = [], []
    for number, entry in enumerate(found["images"]):
        key = _key(entry.get("id"))
        if key is None:
            bad.append(BadItem(f"{path}: image {number}", f"the id {entry.get('id')!r} is neither a number nor a text"))
        else:
            pictures.append(Picture(key, _name(entry.get("file_name")), None, [], 0, []))
    captions = {picture.key: [] for picture in pictures}
    for number, annotation in enumerate(found["annotations"]):
        place, image = f"{path}: annotation {number}", annotation.get("image_id")
        if "caption" not in annotation:
            bad.append(BadItem(place, "no 'caption'"))
        elif _key(image) not in captions:
            bad.append(BadItem(place, f"its picture {image!r} is not among the 'images'"))
        else:
            captions[_key(image)].append((place, annotation["caption"]))
    return [_with(picture, captions[picture.key]) for picture in pictures], bad


def _karpathy(path, found):
    if found["images"] and not any("sentences" in entry for entry in found["images"]):
        raise ValueError("no image has 'sentences'")
    pictures, bad = [], []
    for number, entry in enumerate(found["images"]):
        place, key = f"{path}: image {number}", _key(entry.get("cocoid"))
        if key is None or not isinstance(entry.get("sentences"), list):
            bad.append(BadItem(place, "no 'cocoid' or no list of 'sentences'"))
            continue
        name = _name(entry.get("filename"))
        if name and isinstance(entry.get("filepath"), str):
            name = os.path.join(entry["filepath"], name)
        raw = [sentence.get("raw", sentence) for sentence in entry["sentences"]]
        captions = [(f"{place}: sentence {n}", caption) for n, caption in enumerate(raw)]
        pictures.append(_with(Picture(key, name, entry.get("split"), [], 0, []), captions))
    return pictures, bad


def _with(picture, captions):
    """A Picture with captions: [(place, what stands there)]."""
    texts, bad = [], []
    for place, caption in captions:
        if caption is None or isinstance(caption, str):
            texts.append(caption or "")
        else:
            bad.append(BadItem(place, f"the caption {caption!r} is no text"))
    kept = [text for text in texts if text.strip()]
    return picture._replace(texts=kept, num_empty=len(texts) - len(kept), bad=bad)


def _key(value):
    """An id as text: the same for 1, 1.0 and "1". None for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None


def _name(value):
    return value if isinstance(value, str) and value else None
