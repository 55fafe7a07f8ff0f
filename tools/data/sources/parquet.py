"""Rows of parquet files: the bytes of a picture in a column, as Hugging Face writes them, or its path.

Pictures are not read to be listed; where they are read, a whole row group is, and kept until the next one but one.
"""

import contextlib
import dataclasses
import functools
import os
import threading

from itit import storage
from tools.data.sources.item import BadItem
from tools.data.sources.table import Table

try:
    import pyarrow
    from pyarrow import parquet

    from tools.data.sources import columns
except ModuleNotFoundError as error:
    raise ValueError(f"parquet files need pyarrow (pip install -e .[parquet]): {error}") from None

# Threads of a process that ask for one row group wait for one of them.
_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """The bytes in a row of a column of a row group; of a struct, those of its field `bytes`."""

    path: str
    group: int
    row: int
    column: str

    def fields(self):
        """JSON values to make it again."""
        return self.path, self.group, self.row, self.column

    def read(self, limit, held=()):
        """The bytes. Raises ValueError where they are more than `limit` or cannot be read."""
        try:
            with _LOCK:
                values = _column(self.path, self.group, self.column)
        except ValueError as error:
            raise ValueError(f"row group {self.group} is damaged: {error}") from None
        data = values[self.row].as_py()
        if data is None or len(data) > limit:
            raise ValueError("no bytes" if data is None else f"{len(data)} bytes, above the limit of {limit}")
        return data


@dataclasses.dataclass(frozen=True)
class Parquet(Table):
    """Rows of parquet files. The picture's column holds bytes, {bytes, path}, or a path; that of the text a text or a
    list of them. Ids are FILE:ROW where pictures are bytes."""

    def rows(self, path):
        """Yields (number of a row from 1, dict, BadItem, or what is wrong with it)."""
        number = 0
        try:
            with _open(path) as file:
                for group in range(file.num_row_groups):
                    for row in self._group(file, path, group):
                        number += 1
                        yield number, row
        except ValueError as error:
            yield number + 1, BadItem(path, f"the file is damaged, rows from {number + 1} on are lost: {error}")

    def _group(self, file, path, group):
        """Yields the rows of a row group, as `rows` does."""
        schema, column, num_rows = file.schema_arrow, self.image_column, file.metadata.row_group(group).num_rows
        try:
            columns.check_names((self.text_column, column, self.id_column), schema.names)
            kind = columns.kind_of(schema.field(column).type, column) if column else ""
        except ValueError as error:
            yield from [BadItem(path, error)] * num_rows
            return
        names = {self.text_column, self.id_column, column if kind == "path" else ""} - {""}
        rows = columns.rows_of(file.read_row_group(group, sorted(names)), num_rows)
        there = _there(file, group, column) if kind in ("bytes", "struct") else ()
        paths = _paths(file, group, column) if kind == "struct" else [None] * len(there)
        for number, row in enumerate(rows):
            if there and isinstance(row, dict):
                row[column] = Cell(path, group, number, column) if there[number] else paths[number]
            yield row


class _Ranges:
    """A file for pyarrow, which takes what a storage raises for damage: `failed` keeps it."""

    closed, failed = False, None

    def __init__(self, path):
        self._path, self._place, self._size = path, 0, storage.size(path)

    def seek(self, offset, whence=os.SEEK_SET):
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self):
        return self._place

    def read(self, size=-1):
        end = self._size if size < 0 else min(self._place + size, self._size)
        try:
            data = storage.read_range(self._path, self._place, end - self._place) if end > self._place else b""
        except Exception as error:
            self.failed = error
            raise
        self._place += len(data)
        return data

    def close(self):
        self.closed = True


@contextlib.contextmanager
def _open(path):
    """The `ParquetFile`. What is wrong with it, and not with the storage, is raised as ValueError, one line."""
    file = _Ranges(path)
    try:
        yield parquet.ParquetFile(file, pre_buffer=True, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        if file.failed:
            raise file.failed from None
        raise ValueError(str(error).splitlines()[0]) from None


def _there(file, group, column):
    """Whether each row has bytes; told by the statistics of the column where all or none have."""
    info = file.metadata.row_group(group)
    for chunk in (info.column(number) for number in range(info.num_columns)):
        told = chunk.statistics if chunk.path_in_schema in (column, f"{column}.bytes") else None
        if told and told.has_null_count and told.null_count in (0, info.num_rows):
            return [told.null_count == 0] * info.num_rows
    return [value.is_valid for value in _bytes(file, group, column)]


def _paths(file, group, column):
    """The paths of a column of structs: list of str or None."""
    struct = file.schema_arrow.field(column).type
    if struct.get_field_index("path") < 0:
        return [None] * file.metadata.row_group(group).num_rows
    return columns.paths_of(file.read_row_group(group, [f"{column}.path"]).column(0))


def _bytes(file, group, column):
    return columns.bytes_of(file.read_row_group(group, [column, f"{column}.bytes"]).column(0))


@functools.lru_cache(2)
def _column(path, group, column):
    with _open(path) as file:
        return _bytes(file, group, column)
