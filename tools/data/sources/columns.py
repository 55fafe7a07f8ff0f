"""Columns of pictures in Arrow's tables, as parquet files and Hugging Face's datasets have them: bytes, a path, or a
struct {bytes, path}."""

import pyarrow
from pyarrow import types


def kind_of(found, column):
    """ "bytes", "struct" or "path", which a column of nulls is, too. `found`: the type of the column. Raises ValueError
    for another."""
    if types.is_struct(found):
        inner = {found.field(number).name: found.field(number).type for number in range(found.num_fields)}
        # Of a file whose rows are all without, some writers do not know what they would have been.
        if "bytes" in inner and (_is_bytes(inner["bytes"]) or types.is_null(inner["bytes"])):
            return "struct"
    elif _is_bytes(found):
        return "bytes"
    elif any(test(found) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)):
        return "path"
    raise ValueError(f"column {column!r} holds {found}: must be bytes, a path, or a struct {{bytes, path}}")


def _is_bytes(found):
    return any(test(found) for test in (types.is_binary, types.is_large_binary, types.is_binary_view))


def rows_of(table, number):
    """The `number` rows of a table, a dict each, or the ValueError of one whose text is not UTF-8.

    `number`: for a table without columns, which does not know how many there are.
    """
    if not table.num_columns:
        return [{} for _ in range(number)]
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        return [_row_of(table.slice(place, 1)) for place in range(number)]


def _row_of(table):
    try:
        return table.to_pylist()[0]
    except UnicodeDecodeError:
        return ValueError("a text is not UTF-8")


def check_names(wanted, there):
    """Raises ValueError where a column that is asked for is not there, or not once."""
    for name in filter(None, wanted):
        if there.count(name) != 1:
            many = f"{there.count(name)} columns" if name in there else "no column"
            raise ValueError(f"{many} {name!r}; there are {', '.join(map(repr, there)) or 'none'}")


def bytes_of(values):
    """The bytes of a column, without copying any: ChunkedArray of binary."""
    return _field(values, "bytes") if pyarrow.types.is_struct(values.type) else values


def paths_of(values):
    """The paths of a column of structs: list of str or None."""
    if values.type.get_field_index("path") < 0:
        return [None] * len(values)
    return _field(values, "path").to_pylist()


def _field(values, name):
    return values.flatten()[values.type.get_field_index(name)]
