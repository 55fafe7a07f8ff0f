"""The batches of pictures: order, hosts' shares, crops and flips, in memory and streamed alike."""

import numpy as np
import pytest

from itit.data import records
from tests.helpers.pictures import write_shards
from tools.training import pictures as pictures_lib
from tools.training.pictures import Pictures


def batches(source, count):
    return [source.batch(step)["images"] for step in range(count)]


def test_pictures_are_the_same_streamed_as_in_memory(tmp_path, monkeypatch):
    written = write_shards(tmp_path, [5, 6])
    arguments = ("data", str(tmp_path / "raw-*"), 16, 4, 7)
    in_memory = Pictures(*arguments)
    monkeypatch.setattr(pictures_lib, "MAX_BYTES_IN_MEMORY", 0)
    streamed = Pictures(*arguments)
    assert len(in_memory) == len(streamed) == 11
    seen = np.concatenate(batches(in_memory, 11))
    assert np.array_equal(seen, np.concatenate(batches(streamed, 11)))
    want = sorted(picture.tobytes() for picture, _ in written)
    assert sorted(picture.tobytes() for picture in seen[:11]) == want
    assert np.array_equal(streamed.first(3), np.stack([picture for picture, _ in written[:3]]))
    assert len(streamed.first(99)) == 11
    assert np.array_equal(streamed.sample(9), seen[:9])


def test_hosts_share_the_same_batch(tmp_path):
    write_shards(tmp_path, [9])
    make = lambda **hosts: Pictures("data", str(tmp_path / "raw-*"), 12, 4, 7, crop_from=16, random_flip=True, **hosts)  # noqa: E731
    whole = batches(make(), 5)
    shares = [batches(make(host_index=host, num_hosts=2), 5) for host in range(2)]
    for step in range(5):
        assert np.array_equal(whole[step], np.concatenate([share[step] for share in shares]))
    with pytest.raises(ValueError, match="--batch_size=4: must be a multiple of 3 hosts"):
        make(num_hosts=3)


def test_crops_and_flips_are_found_in_their_pictures(tmp_path):
    """Every batch is some window of its picture, or of its mirror image, and over time many of both."""
    write_shards(tmp_path, [1])
    pattern = str(tmp_path / "raw-*")
    picture = Pictures("data", pattern, 16, 1, 0).batch(0)["images"][0]
    source = Pictures("data", pattern, 12, 4, 3, crop_from=16, random_flip=True)
    windows = {}
    for flipped, whole in ((False, picture), (True, picture[:, ::-1])):
        for top in range(5):
            for left in range(5):
                windows[whole[top : top + 12, left : left + 12].tobytes()] = (flipped, top, left)
    found = {windows[crop.tobytes()] for batch in batches(source, 30) for crop in batch}
    assert {flipped for flipped, _, _ in found} == {False, True} and len(found) > 15
    assert {top for _, top, _ in found} == {left for _, _, left in found} == set(range(5))
    again = Pictures("data", pattern, 12, 4, 3, crop_from=16, random_flip=True)
    assert np.array_equal(source.batch(17)["images"], again.batch(17)["images"])
    with pytest.raises(ValueError, match="--crop_from=8: must be at least image_size=12"):
        Pictures("data", pattern, 12, 4, 3, crop_from=8)


def test_a_damaged_record_is_named(tmp_path):
    write_shards(tmp_path, [3])
    path = tmp_path / "raw-0.tfrecord"
    data = bytearray(path.read_bytes())
    offset = int(records.index(str(path))[1, 0])
    data[offset + 40] ^= 4
    path.write_bytes(data)
    with pytest.raises(records.BadRecord, match=f"raw-0.tfrecord@{offset}"):
        Pictures("data", str(path), 16, 4, 0)
