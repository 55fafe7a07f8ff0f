"""One stream's records: their numbering, their datasets, and which form of a thing is taken."""

import re

import numpy as np
import pytest

from itit.data import records
from itit.data.blocks import Reader
from itit.data.source import Source, datasets
from tests.data.test_streams import ids_record, make_config, numbers, png, write, write_ids


def open_source(pattern, wanted=("picture", "text"), lanes=1, **values):
    return Source("paired_data", pattern, wanted, make_config(**values), Reader(2, 1 << 20), lanes)


def source_of(folder, wanted=("picture", "text")):
    return open_source(f"{folder}/*", wanted)


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


def test_datasets_and_weights_are_read():
    assert datasets("a-*, gs://b/c-*") == [("a-*, gs://b/c-*", 1)]
    assert datasets("a-*@3, gs://b/c-*@1,me@home/d@12") == [("a-*", 3), ("gs://b/c-*", 1), ("me@home/d", 12)]
    alone = ("a@1.5", "@3", "a@-1", "a@1001", "a@x@", "me@home/d", "a@", "a@+1", "a@ 1")
    for pattern, wrong in [("a@3,b", "b"), ("a@0,b@1", "a@0"), ("a@3,", ""), *zip(alone, alone, strict=True)]:
        with pytest.raises(ValueError, match=re.escape(f"{wrong!r}: must end in @ and a whole number from 1 to 1000")):
            datasets(pattern)


def test_a_mixture_draws_by_weight(tmp_path):
    one, two = write_ids(tmp_path, count=30, name="one"), write_ids(tmp_path, count=12, shards=2, name="two", key="x")
    source = open_source(f"{one}@3,{two}@1", lanes=4)
    assert len(source) == 42
    assert source.describe() == ("paired_data: 42 records in 5 shards, image_ids and text_ids, "
                                 f"in turn 3 from {one} (30), 1 from {two} (12)")  # fmt: skip
    ids = source.ids(np.arange(160)).reshape(-1, 16)
    assert ((ids >= 30).sum(1) == 4).all()
    assert np.bincount(ids[:10].ravel(), minlength=42)[:30].min() >= 3  # 120 of its records, 30 an epoch
    found = numbers(np.stack([source.load(int(number))["text_ids"] for number in ids[0]]))
    np.testing.assert_array_equal(found, ids[0] % 30)
    with pytest.raises(ValueError, match=r"one-0 is in two of its datasets"):
        open_source(f"{one}@3,{one[:-1]}0@1")
    write(tmp_path / "empty", [])
    with pytest.raises(ValueError, match=r"--paired_data=.*empty: no records in 1 file"):
        open_source(f"{one}@3,{tmp_path}/empty@1")


def test_the_fingerprint_tells_data_apart(tmp_path):
    write(tmp_path / "a", [ids_record(n) for n in range(20)])
    first = source_of(tmp_path).fingerprint
    assert source_of(tmp_path).fingerprint == first
    write(tmp_path / "a", [ids_record(n + 1) for n in range(20)])
    other = source_of(tmp_path).fingerprint
    write(tmp_path / "a", [ids_record(n) for n in range(21)])
    assert len({first, other, source_of(tmp_path).fingerprint}) == 3


def test_shards_that_begin_with_damage_are_passed_over(tmp_path):
    write(tmp_path / "a", [b"x"] * 16 + [ids_record(1)])
    with pytest.raises(ValueError, match="all 17 records are damaged, or all that its shards begin with"):
        source_of(tmp_path)
    write(tmp_path / "b", [b"x"] * 15 + [ids_record(1)])
    assert source_of(tmp_path).forms == {"picture": "image_ids", "text": "text_ids"}
