"""One stream's records: their numbering, and which form of a thing is taken."""

import concurrent.futures
import re

import numpy as np
import pytest

from itit.data import records
from itit.data.source import Source
from tests.test_streams import ids_record, make_config, numbers, png, write

POOL = concurrent.futures.ThreadPoolExecutor(2)


def source_of(folder, wanted=("picture", "text")):
    return Source("paired_data", f"{folder}/*", wanted, make_config(), POOL)


def test_records_are_numbered_shard_by_shard(tmp_path):
    sizes = np.random.default_rng().integers(1, 9, 4)
    sizes[1] = 0
    first = np.concatenate([[0], np.cumsum(sizes)])
    for shard in np.random.default_rng().permutation(4).tolist():
        payloads = [ids_record(n) for n in range(first[shard], first[shard + 1])]
        write(tmp_path / f"shard-{shard}", payloads)
    source = source_of(tmp_path)
    assert len(source) == first[-1] and source.broken == []
    found = np.stack([source.load(record_id)["text_ids"] for record_id in range(len(source))])
    assert numbers(found).tolist() == list(range(len(source)))
    assert source.describe() == f"paired_data: {first[-1]} records in 4 shards, image_ids and text_ids"


def test_ready_ids_come_first(tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
    write(tmp_path / "a", [ids_record(3, image=png(pixels), text="three")])
    assert source_of(tmp_path).forms == {"picture": "image_ids", "text": "text_ids"}
    write(tmp_path / "a", [ids_record(3, image=png(pixels), text="three", image_ids=None, text_ids=None)])
    source = source_of(tmp_path)
    assert source.forms == {"picture": "image", "text": "text"}
    value = source.load(0)
    assert value["text"] == "three"
    np.testing.assert_array_equal(value["image"], pixels)
    assert list(source_of(tmp_path, ("text",)).load(0)) == ["text"]


def test_damage_names_the_place(tmp_path):
    path = write(tmp_path / "a", [ids_record(0), ids_record(1, text_ids=None, text="raw in a stream of ids")])
    offset = records.index(path)[1, 0]
    with pytest.raises(records.BadRecord, match=re.escape(f"{path}@{offset}: no 'text_ids' in it")):
        source_of(tmp_path).load(1)
    assert str(source_of(tmp_path).bad(1, "cause")) == f"{path}@{offset}: cause"
