"""tools.data.splits: folders that appear whole, and splits cut into shards."""

import os
import re

import numpy as np
import pytest

from itit import storage
from itit.data import records, shard_index
from tools.data import splits


def read_shards(folder, name):
    """[(shard, its number of records)] and the values of feature "number" in the order of the shards."""
    sizes, numbers = [], []
    for path in sorted(map(str, folder.glob(f"{name}-*.tfrecord"))):
        spans = records.index(path).tolist()
        assert shard_index.read(path).tolist() == spans
        sizes.append((path.rpartition("/")[2], len(spans)))
        numbers += [int(records.decode_example(records.read(path, *span))["number"][0]) for span in spans]
    return sizes, numbers


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    output = tmp_path / "made"
    with pytest.raises(RuntimeError), splits.new_folder(str(output)) as staging:
        storage.write_bytes(f"{staging}/a", b"half")
        raise RuntimeError
    assert not output.exists()
    with splits.new_folder(f"{output}/") as staging:
        assert not storage.exists(f"{staging}/a"), "what the killed call left"
        storage.write_bytes(f"{staging}/b", b"whole")
        assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert [path.name for path in output.iterdir()] == ["b"] and (output / "b").read_bytes() == b"whole"


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "old").write_bytes(b"mine")
    with (
        pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*already there"),
        splits.new_folder(str(tmp_path)),
    ):
        raise AssertionError("the block must not run")
    assert (tmp_path / "old").read_bytes() == b"mine" and not tmp_path.with_name(tmp_path.name + ".partial").exists()


def test_a_folder_that_can_be_made_again_is_compared(tmp_path):
    """As a call is repeated that was killed between the renaming and its end."""
    output, content = tmp_path / "made", os.urandom(20)

    def make(data, names=("hashes.json", "sub/a")):
        with splits.new_folder(str(output), repeatable=True) as staging:
            storage.make_dirs(f"{staging}/sub")
            for name in names:
                storage.write_bytes(f"{staging}/{name}", data)

    make(content)
    make(content)
    for change in (dict(data=content[::-1]), dict(data=content, names=("hashes.json",)),
                   dict(data=content, names=("hashes.json", "sub/a", "b"))):  # fmt: skip
        with pytest.raises(ValueError, match=f"--output={output}: already there, and holds something else"):
            make(**change)
        assert (output / "sub" / "a").read_bytes() == content and os.listdir(tmp_path) == ["made"]
    (output / "hashes.json").unlink()
    with pytest.raises(ValueError, match="already there; remove it"):
        make(content)


@pytest.mark.parametrize("total", [0, 1, 7, 8, "random"])
def test_shards_hold_all_examples_in_order_and_alike_in_size(tmp_path, monkeypatch, total):
    rng = np.random.default_rng()
    limit = 7
    total = int(rng.integers(30, 100)) if total == "random" else total
    monkeypatch.setattr(splits, "RECORDS_A_SHARD", limit)
    numbers = rng.integers(10**6, size=total).tolist()
    splits.write_split(str(tmp_path), "part", ({"number": [number]} for number in numbers), total)
    sizes, found = read_shards(tmp_path, "part")
    assert found == numbers
    counts = [size for _, size in sizes]
    assert max(counts) <= limit and max(counts) - min(counts) <= 1
    assert len(sizes) == max(1, (total + limit - 1) // limit)
    assert [name for name, _ in sizes] == [f"part-{i:05d}-of-{len(sizes):05d}.tfrecord" for i in range(len(sizes))]


def test_settings_stay(tmp_path):
    path = str(tmp_path / "new" / "settings.json")
    splits.settle(path, {"seed": 1, "input": ["a", "b"]})
    splits.settle(path, {"seed": 1, "input": ["a", "b"]})
    with pytest.raises(ValueError, match=r"settings.json: --seed was 1, is now 2; name another --output"):
        splits.settle(path, {"seed": 2, "input": ["a", "b"]})
    splits.settle(path, {"seed": 2}, made=False)
    with pytest.raises(ValueError, match="--seed was 2, is now 1"):
        splits.settle(path, {"seed": 1})
