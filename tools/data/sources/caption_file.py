"""A file of captions for the pictures of a folder: csv, tsv or jsonl with named columns, or json of several forms."""

import collections
import json
import os

from itit import storage
from tools.data.sources import coco_captions, lookup
from tools.data.sources.item import BadItem
from tools.data.sources.table import Csv, Jsonl, Tsv

IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "image_path")
TEXT_COLUMNS = ("caption", "text", "captions", "description")
TABLES = {".csv": Csv(), ".tsv": Tsv(), ".jsonl": Jsonl()}


def read(path, folder, image_column="", text_column=""):
    """Which texts are of which picture.

    Args:
      path: .csv, .tsv or .jsonl (also with .gz or .zst), or .json: COCO's, Karpathy's, a list of objects, or one object
        of names and texts. A picture may be named in several rows, and a row may have a list of texts.
      folder: where the pictures are; a name is looked for as `lookup.Lookup.find` does.
      image_column, text_column: empty: the one that is called as in IMAGE_COLUMNS, TEXT_COLUMNS.

    Returns:
      ({path of a picture: list of str, none empty}, how many others are empty, list of BadItem).

    Raises ValueError, one line, for a file of another kind and for columns that are not told.
    """
    rows, bad = _rows(path, image_column, text_column)
    files, lone = lookup.Lookup(folder, "input"), lookup.lone(name for _, name, _ in rows)
    found, num_empty = collections.defaultdict(list), 0
    for place, name, texts in rows:
        try:
            picture = files.find(name, lone)
        except ValueError as error:
            bad.append(BadItem(place, error))
            continue
        kept = [text for text in texts if text.strip()]
        found[picture] += kept
        num_empty += len(texts) - len(kept)
    return found, num_empty, bad


def _rows(path, image_column, text_column):
    """([(place, name of a picture, list of str)], list of BadItem)."""
    if not storage.exists(path):
        raise ValueError(f"--captions={path}: no such file")
    stem, suffix = os.path.splitext(path.lower())
    suffix = os.path.splitext(stem)[1] if suffix in (".gz", ".zst") else suffix
    if suffix in TABLES:
        found = [(f"{path}:{number}", row) for number, row in TABLES[suffix].rows(path)]
        return _named(path, found, image_column, text_column)
    if suffix != ".json":
        raise ValueError(f"--captions={path}: must be a .csv, .tsv, .jsonl or .json")
    return _json(path, image_column, text_column)


def _json(path, image_column, text_column):
    try:
        data = json.loads(storage.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--captions={path}: not JSON: {error}") from None
    if isinstance(data, list):
        rows = [(f"{path}: entry {number}", row) for number, row in enumerate(data)]
        return _named(path, rows, image_column, text_column)
    if isinstance(data, dict) and "images" not in data:
        rows = [(f"{path}: {name!r}", {"image": name, "caption": texts}) for name, texts in data.items()]
        return _named(path, rows, "image", "caption")
    pictures, bad = coco_captions.read(path)
    rows = [(f"{path}: picture {p.key}", p.name, [*p.texts, *[""] * p.num_empty]) for p in pictures if p.name]
    nameless = [BadItem(f"{path}: picture {p.key}", "the json names no file of it") for p in pictures if not p.name]
    return rows, [*bad, *nameless, *(error for p in pictures for error in p.bad)]


def _named(path, found, image_column, text_column):
    """Rows of columns, (place, dict or BadItem), as `_rows` returns them."""
    columns = next((list(row) for _, row in found if isinstance(row, dict)), [])
    image = _column(path, columns, "image_column", image_column, IMAGE_COLUMNS)
    text = _column(path, columns, "text_column", text_column, TEXT_COLUMNS)
    rows, bad = [], []
    for place, row in found:
        try:
            rows.append((place, *_cells(row, image, text)))
        except BadItem as error:
            bad.append(error)
        except ValueError as error:
            bad.append(BadItem(place, error))
    return rows, bad


def _column(path, columns, flag, given, usual):
    names = [given] if given else usual
    known = [column for column in columns if column in names]
    if len(known) == 1:
        return known[0]
    there = ", ".join(map(repr, columns)) or "none"
    asked = f"no column {given!r}" if given else f"name a column by --{flag}"
    raise ValueError(f"--captions={path}: {asked}; there are {there}")


def _cells(row, image, text):
    """(name, list of str) of a row. Raises ValueError."""
    if isinstance(row, BadItem):
        raise row
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    name, texts = row.get(image), row.get(text)
    texts = ["" if one is None else one for one in (texts if isinstance(texts, list) else [texts])]
    if not isinstance(name, str) or not name or not all(isinstance(one, str) for one in texts):
        raise ValueError(f"{image!r} must be the name of a picture, {text!r} a text or a list of texts")
    return name, texts
