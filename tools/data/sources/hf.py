"""Rows of a dataset of Hugging Face's `datasets`: one that `save_to_disk` has written, or one by its name.

A name is fetched by `datasets`, into its own cache, on each machine that reads it.
"""

import dataclasses
import functools
import logging
import os

from itit import storage
from itit.config import knob
from itit.untrusted import shown
from tools.data.sources.item import digest
from tools.data.sources.table import Table

try:
    import datasets

    from tools.data.sources import columns
except ModuleNotFoundError as error:
    raise ValueError(f"the source hf needs datasets (pip install -e .[hf]): {error}") from None

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
ROWS = 10_000  # of a part


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """The bytes of the picture in a row of a dataset."""

    name: str
    subset: str
    split: str
    row: int
    column: str

    def fields(self):
        """JSON values to make it again."""
        return self.name, self.subset, self.split, self.row, self.column

    def read(self, limit, held=()):
        """The bytes. Raises ValueError where they are more than `limit`."""
        table = _dataset(self.name, self.subset, self.split).select_columns([self.column])[self.row : self.row + 1]
        data = columns.bytes_of(table.column(0))[0].as_py()
        if len(data) > limit:
            raise ValueError(f"{len(data)} bytes, above the limit of {limit}")
        return data


@dataclasses.dataclass(frozen=True)
class Hf(Table):
    """Rows of a dataset. The picture's column is an Image, bytes, or a path; that of the text a text or a list of them.
    Ids are SPLIT:ROW where pictures are bytes."""

    input: str = knob("", "Folder that save_to_disk has written, or OWNER/NAME, which `datasets` then fetches.")
    subset: str = knob("", "Subset (configuration) of a dataset by its name, where it has several.")
    split: str = knob("train", "Split, where it has several.")

    def parts(self):
        """Ranges of rows, and what tells the dataset."""
        self._check()
        found = self._open()
        try:
            columns.check_names((self.text_column, self.image_column, self.id_column), found.column_names)
            if self.image_column:
                columns.kind_of(found.data.schema.field(self.image_column).type, self.image_column)
        except ValueError as error:
            raise ValueError(f"--input={self.input}: {error}") from None
        told = digest([found._fingerprint, str(len(found))])
        return {f"{self.split}:{start}": told for start in range(0, len(found), ROWS)}

    def _place(self, part, number):
        return f"{self.split}:{number}"

    def rows(self, part):
        """Yields (number of a row from 1, dict, or what is wrong with it)."""
        found, start, column = self._open(), int(part.rpartition(":")[2]), self.image_column
        names = sorted({self.text_column, column, self.id_column} - {""})
        table = found.select_columns(names)[start : start + ROWS]
        rows = columns.rows_of(table.select([name for name in names if name != column]), table.num_rows)
        pictures = self._pictures(table.column(column), start) if column else []
        for number, row in enumerate(rows):
            if pictures and isinstance(row, dict):
                row[column] = pictures[number]
            yield start + number + 1, row

    def _pictures(self, values, start):
        kind = columns.kind_of(values.type, self.image_column)
        if kind == "path":
            return values.to_pylist()
        paths = columns.paths_of(values) if kind == "struct" else [None] * len(values)
        return [Row(*self._name(), start + number, self.image_column) if value.is_valid else paths[number]
                for number, value in enumerate(columns.bytes_of(values))]  # fmt: skip

    def _name(self):
        return self.input, self.subset, self.split

    def _open(self):
        return _dataset(*self._name())


@functools.lru_cache(1)
def _dataset(name, subset, split):
    """The dataset, whose slices are Arrow's tables. Raises ValueError, one line, where it is not there."""
    try:
        if os.path.isdir(name) or "://" in name:
            if name.startswith(storage.REMOTE) and not storage.list_dir(name):
                raise ValueError("no such folder")
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, subset or None)
        if not isinstance(found, dict):
            found = {str(found.split or split): found}
        if split not in found:
            raise ValueError(f"--split={split}: there are {', '.join(found)}")
        return found[split].with_format("arrow")
    except Exception as error:  # datasets, huggingface_hub, httpx and fsspec have a dozen
        raise ValueError(f"--input={name}: {shown(str(error).strip().splitlines()[0])}") from None
