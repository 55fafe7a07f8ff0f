"""Columns of pictures in Arrow's tables, as parquet files and Hugging Face's datasets have them: bytes, a path, or a
struct {bytes, path}."""

import pyarrow


def kind_of(found, column):
    """ "bytes", "struct" or "path". `found`: the type of the column. Raises ValueError for another."""
    types = pyarrow.types
    if types.is_struct(found):
        inner = {found.field(number).name: found.field(number).type for number in range(found.num_fields)}
        if "bytes" in inner and _is_bytes(inner["bytes"]):
            return "struct"
    elif _is_bytes(found):
        return "bytes"
    elif types.is_string(found) or types.is_large_string(found):
        return "path"
    raise ValueError(f"column {column!r} holds {found}: must be bytes, a path, or a struct of both")


def _is_bytes(found):
    return pyarrow.types.is_binary(found) or pyarrow.types.is_large_binary(found)


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
