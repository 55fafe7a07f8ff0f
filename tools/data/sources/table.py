"""Rows of jsonl, csv or tsv files: a column of texts, a column of pictures, or both.

A row with an empty picture is a text alone, one with an empty text a picture alone; a row whose picture is not there
counts as damaged.
"""

import csv
import dataclasses
import hashlib
import os
import urllib.parse

from itit import storage
from itit.config import knob
from tools.data.sources import lines
from tools.data.sources.item import MAX_TEXT, BadItem, Blob, Item, parse_object

HASHES = ("md5", "sha1", "sha256")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of files of one kind. A field of jsonl may also hold a list of texts."""

    input: str = knob("", "The files, plain, .gz or .zst; patterns, separated by commas.")
    text_column: str = knob("caption", "Column of the text; empty: pictures alone.")
    image_column: str = knob("image", "Column of the picture's path or URL; empty: texts alone.")
    id_column: str = knob("", "Column of a unique id; empty: the picture as it is written, or FILE:LINE.")
    line_ids: bool = knob(False, "Ids are FILE:LINE, for files that name a picture in several rows.")
    image_root: str = knob("", "Folder that the pictures are in; empty: that of the file.")
    url_names: str = knob("path", "What the file of a downloaded URL is called in image_root: HOST/PATH as wget -x "
                          "does, the last part of the path, or a hash of the URL in hex.",
                          ("path", "basename", *HASHES))  # fmt: skip
    url_suffix: str = knob(".jpg", "What follows the hash of a URL in the name of its file.")

    def parts(self):
        """The files, and what tells each."""
        self._check()
        return storage.stamps(self.input)

    def _check(self):
        if not self.input:
            raise ValueError("--input is empty: nothing to read")
        if self.text_column == self.image_column:
            what = f"{self.text_column!r}: must be two columns" if self.text_column else "empty: nothing to read"
            raise ValueError(f"--text_column and --image_column are both {what}")

    def items(self, part):
        """Yields one Item a row, and BadItems. Items of one picture are one unit."""
        root = self.image_root or os.path.dirname(part)
        for number, row in self.rows(part):
            place = self._place(part, number)
            try:
                if isinstance(row, ValueError):
                    raise row
                yield self._item(row, root, place)
            except ValueError as error:
                yield error if isinstance(error, BadItem) else BadItem(place, error)

    def _place(self, part, number):
        return f"{part}:{number}"

    def _item(self, row, root, place):
        for column in filter(None, (self.text_column, self.image_column, self.id_column)):
            if column not in row:
                raise ValueError(f"no column {column!r}; there are {', '.join(map(repr, row))}")
        texts = row[self.text_column] if self.text_column else []
        texts = ["" if text is None else text for text in (texts if isinstance(texts, list) else [texts])]
        picture = (row[self.image_column] if self.image_column else "") or ""
        name = "" if hasattr(picture, "read") else picture  # of what a source of bytes gives in its place
        for column, values in ((self.text_column, texts), (self.image_column, [name])):
            if wrong := [value for value in values if not isinstance(value, str)]:
                raise ValueError(f"column {column!r} holds {type(wrong[0]).__name__}: must be a string")
        given, texts = len(texts), tuple(text for text in texts if text.strip())
        if not picture and not texts:
            raise ValueError("neither picture nor text")
        key = self._id_of(row) if self.id_column else not self.line_ids and name or os.path.basename(place)
        image = Blob(_inside(root, self._file_of(name))) if name else picture or None
        return Item(key, place, image, texts, name, given - len(texts))

    def _id_of(self, row):
        value = row[self.id_column]
        if not isinstance(value, str | int) or not str(value).strip():
            what = repr(value) if value is None or isinstance(value, str | float) else type(value).__name__
            raise ValueError(f"column {self.id_column!r} holds {what}: must be an id, a string or a whole number")
        return str(value)

    def _file_of(self, name):
        url = urllib.parse.urlsplit(name)
        if url.scheme not in ("http", "https"):
            return name
        if self.url_names in HASHES:
            return hashlib.new(self.url_names, name.encode("utf-8", "surrogateescape")).hexdigest() + self.url_suffix
        return os.path.basename(url.path) if self.url_names == "basename" else url.netloc + url.path


def _inside(root, name):
    """The path of a file that a row names, which must be below `root`."""
    path = storage.join(root, name)
    inner = os.path.relpath(path, root or ".") if not storage.is_remote(root) else os.path.normpath(name)
    if inner.startswith(("..", "/")) or "\0" in name:
        raise ValueError(f"the picture {name!r} lies outside {root or '.'}: set --image_root")
    return path


@dataclasses.dataclass(frozen=True)
class Jsonl(Table):
    """A JSON object a line."""

    def rows(self, path):
        """Yields (line number, dict or BadItem)."""
        for number, line in lines.numbered(path):
            try:
                if isinstance(line, BadItem) or line.strip():
                    yield number, line if isinstance(line, BadItem) else parse_object(line)
            except ValueError as error:
                yield number, BadItem(f"{path}:{number}", error)


@dataclasses.dataclass(frozen=True)
class Csv(Table):
    """Cells between commas, in quotes where need be."""

    columns: str = knob("", "Names of the columns, for files without a line of them (CC3M: caption,url).")
    _format = {"delimiter": ","}

    def rows(self, path):
        """Yields (number of the row's last line, dict or BadItem).

        A quote that does not close where a cell ends has taken rows for a part of the cell: damage, with the line where
        that row begins.
        """
        csv.field_size_limit(MAX_TEXT)
        bad, columns = [], [name.strip() for name in self.columns.split(",")] if self.columns else None
        reader = csv.reader(_text(path, bad), strict=True, **self._format)
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, BadItem(f"{path}:{first}", _cause(error, first, reader.line_num))
                continue
            yield from ((reader.line_num, error) for error in bad)
            bad.clear()
            if cells is None:
                return
            if columns is None:
                columns = _different(path, cells)
            elif len(cells) != len(columns) and cells:
                cause = f"{len(cells)} cells, must be {len(columns)} ({', '.join(columns)})"
                yield reader.line_num, BadItem(f"{path}:{reader.line_num}", cause)
            elif cells:
                yield reader.line_num, dict(zip(columns, cells, strict=True))


def _different(path, columns):
    """The names of columns. Raises ValueError where one is there twice: of its two cells one would be lost."""
    for name in columns:
        if name and columns.count(name) > 1:
            raise ValueError(f"{path}: two columns are called {name!r}")
    return columns


def _cause(error, first, last):
    """What the csv module says, and which lines are lost."""
    ends = str(error) == "unexpected end of data"
    lost = f"lines {first} to {last} are lost" if last > first else "the row is lost"
    quotes = ". A quote inside a cell is written twice" if ends or last > first or '"' in str(error) else ""
    return f"{'the file ends inside a cell in quotes' if ends else error}: {lost}{quotes}"


@dataclasses.dataclass(frozen=True)
class Tsv(Csv):
    """Cells between tabs, without quotes, as in CC3M: caption, tab, URL."""

    _format = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def _text(path, bad):
    """Yields lines as str, what is not UTF-8 in surrogates; BadItems go into `bad`."""
    for _, line in lines.numbered(path):
        if isinstance(line, BadItem):
            bad.append(line)
            yield "\n"  # keeps the count of lines
        else:
            yield line.decode("utf-8-sig", "surrogateescape") + "\n"
