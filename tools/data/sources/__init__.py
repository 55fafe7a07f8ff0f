"""Where pictures and texts come from: a file a source, of `python -m tools.prepare SOURCE`."""

import importlib

# Where a source is; some need libraries that not everybody has.
SOURCES = {"coco": "coco.Coco", "folder": "folder.Folder", "jsonl": "table.Jsonl", "csv": "table.Csv",
           "tsv": "table.Tsv", "parquet": "parquet.Parquet", "hf": "hf.Hf", "webdataset": "webdataset.Webdataset",
           "text": "text.Text"}  # fmt: skip


def source_of(name):
    """The dataclass of a source, a row of SOURCES. Raises ValueError where its library is not installed."""
    module, _, kind = SOURCES[name].partition(".")
    return getattr(importlib.import_module(f"tools.data.sources.{module}"), kind)
