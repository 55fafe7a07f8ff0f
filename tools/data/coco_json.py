"""COCO's json forms: captions of images, and results of captioning."""

import json

from itit import storage


def read_references(path):
    """COCO json of captions: image_id -> list of str, in the order of the file. Raises ValueError, one line."""
    found = {}
    for entry in annotations(path):
        found.setdefault(entry["image_id"], []).append(entry["caption"])
    return found


def annotations(path):
    """The entries of COCO json of captions, dicts with "image_id" and "caption". Raises ValueError, one line."""
    data = _read(path)
    entries = data.get("annotations") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: needs a list 'annotations' of objects with 'image_id' and 'caption'")
    for number, entry in enumerate(entries):
        _entry(path, f"annotation {number}", entry)
    return entries


def read_results(path):
    """JSON list of {"image_id", "caption"}: image_id -> str. Raises ValueError, one line, also for an image twice."""
    data, found = _read(path), {}
    if not isinstance(data, list) or not data:
        raise ValueError(f'{path}: needs a JSON list of {{"image_id", "caption"}}')
    for number, entry in enumerate(data):
        image_id, caption = _entry(path, f"result {number}", entry)
        if image_id in found:
            raise ValueError(f"{path}: result {number}: image_id {image_id!r} has a caption already")
        found[image_id] = caption
    return found


def file_names(path):
    """COCO json with 'images': image_id -> file_name. Raises ValueError, one line, also for an id of two files."""
    data, found = _read(path), {}
    try:
        for entry in data["images"]:
            if found.setdefault(entry["id"], entry["file_name"] + "") != entry["file_name"]:
                two = f"{found[entry['id']]} and {entry['file_name']}"
                raise ValueError(f"{path}: the id {entry['id']!r} is there twice: {two}")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: needs a list 'images' of objects with 'id' and 'file_name' ({error!r})") from None
    return found


def _read(path):
    if not storage.exists(path):
        raise ValueError(f"{path}: no such file")
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def _entry(path, name, entry):
    try:
        image_id, caption = entry["image_id"], entry["caption"]
    except (KeyError, TypeError):
        raise ValueError(f"{path}: {name}: needs 'image_id' and 'caption'") from None
    if not isinstance(caption, str) or not isinstance(image_id, (int, str)):
        raise ValueError(f"{path}: {name}: image_id must be a number or a text, caption a text")
    return image_id, caption
