"""TFRecord framing and the tf.train.Example codec, against TensorFlow's own, and against damage."""

import bz2
import gzip
import lzma
import struct
import time

import numpy as np
import pytest

from itit.data import records


def payloads(rng, count):
    return [rng.bytes(int(size)) for size in rng.integers(0, 3000, count)]


def write(path, items):
    with records.RecordWriter(str(path)) as writer:
        for item in items:
            writer.write(item)
    return str(path)


def random_features(rng):
    return {
        "image": rng.bytes(int(rng.integers(0, 400))),
        "text": "".join(chr(code) for code in rng.integers(32, 0x2FFF, 30)),
        "image_ids": rng.integers(0, 8192, int(rng.integers(0, 300))),
        "wide": rng.integers(-(2**63), 2**63 - 1, 50),
        "small": rng.integers(-5, 5, 50).tolist(),
        "floats": rng.normal(size=40).astype(np.float32),
        "nothing": [],
    }


def test_files_equal_tensorflows_byte_for_byte(tmp_path):
    tf = pytest.importorskip("tensorflow")
    items = payloads(np.random.default_rng(), 50)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for item in items:
            writer.write(item)
    path = write(tmp_path / "ours", items)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert [records.read(path, *span) for span in records.index(path).tolist()] == items


def test_example_is_understood_by_tensorflow():
    tf = pytest.importorskip("tensorflow")
    features = random_features(np.random.default_rng())
    theirs = tf.train.Example.FromString(records.encode_example(features)).features.feature
    assert set(theirs) == set(features)
    assert theirs["image"].bytes_list.value == [features["image"]]
    assert theirs["text"].bytes_list.value[0].decode() == features["text"]
    for name in ("image_ids", "wide", "small", "nothing"):
        assert list(theirs[name].int64_list.value) == list(features[name])
    np.testing.assert_array_equal(np.float32(theirs["floats"].float_list.value), features["floats"])


def test_tensorflows_example_is_understood():
    tf = pytest.importorskip("tensorflow")
    features, example = random_features(np.random.default_rng()), tf.train.Example()
    example.features.feature["texts"].bytes_list.value.extend([b"one", b"", b"three"])
    example.features.feature["empty"].SetInParent()
    for name, value in features.items():
        feature = example.features.feature[name]
        if isinstance(value, bytes | str):
            feature.bytes_list.value.append(value if isinstance(value, bytes) else value.encode())
        elif name == "floats":
            feature.float_list.value.extend(value)
        else:
            feature.int64_list.value.extend(value)
            feature.int64_list.SetInParent()
    decoded = records.decode_example(example.SerializeToString())
    assert decoded.pop("texts") == [b"one", b"", b"three"]
    assert set(decoded) == set(features)
    for name, value in features.items():
        if isinstance(value, bytes | str):
            assert decoded[name] == [value if isinstance(value, bytes) else value.encode()]
        else:
            np.testing.assert_array_equal(decoded[name], value)
            assert decoded[name].dtype == (np.float32 if name == "floats" else np.int64)


def message(number, payload):
    return records._field(number, payload)


def feature_bytes(kind, content):
    return message(1, message(1, message(1, b"x") + message(2, message(kind, content))))


def test_unpacked_numbers_and_unknown_fields_are_read():
    rng = np.random.default_rng()
    ints, floats = rng.integers(-(2**40), 2**40, 9), rng.normal(size=7).astype("<f4")
    unpacked = b"".join(b"\x08" + records._varint(int(number) & (2**64 - 1)) for number in ints)
    unknown = message(9, rng.bytes(5)) + b"\x50\x07" + b"\x59" + rng.bytes(8) + b"\x65" + rng.bytes(4)
    decoded = records.decode_example(unknown + feature_bytes(3, unknown + unpacked) + unknown)
    np.testing.assert_array_equal(decoded["x"], ints)
    unpacked = b"".join(b"\x0d" + struct.pack("<f", number) for number in floats)
    np.testing.assert_array_equal(records.decode_example(feature_bytes(2, unpacked))["x"], floats)


def test_cut_or_absurd_examples_are_refused_or_smaller():
    rng = np.random.default_rng()
    payload = records.encode_example(random_features(rng))
    for cut in rng.integers(1, len(payload), 100):
        with pytest.raises(ValueError):
            records.decode_example(payload[: int(cut)])
    with pytest.raises(ValueError, match="longer than what holds it"):
        records.decode_example(b"\x0a" + records._varint(2**62) + b"abc")
    for _ in range(500):
        try:
            records.decode_example(rng.bytes(60))
        except ValueError:
            continue


@pytest.mark.parametrize("value", [1.5, [1.5, "a"], np.zeros((2, 2), int), None, np.array(["a"])])
def test_features_of_other_types_are_refused(value):
    with pytest.raises((ValueError, TypeError)):
        records.encode_example({"x": value})


def test_every_flipped_bit_is_found(tmp_path):
    rng = np.random.default_rng()
    path = write(tmp_path / "a", [rng.bytes(40) for _ in range(3)])
    sound, spans = (tmp_path / "a").read_bytes(), records.index(path).tolist()
    offset, length = spans[1]
    for position in range(offset, spans[2][0]):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(records.BadRecord, match=f"a@{offset}: "):
            records.read(path, offset, length)
        found, broken = records.scan(path)
        in_header = position < offset + records.HEADER
        assert len(found) == (1 if in_header else 3)
        assert ("rest of the file" in str(broken)) == in_header


def test_truncation_and_absurd_lengths_are_found(tmp_path):
    path = write(tmp_path / "a", [b"first", b"second"])
    sound, (_, (offset, length)) = (tmp_path / "a").read_bytes(), records.index(path).tolist()
    for end in range(offset + 1, len(sound)):
        (tmp_path / "a").write_bytes(sound[:end])
        with pytest.raises(records.BadRecord, match=f"a@{offset}: .*ends inside"):
            records.index(path)
        with pytest.raises(records.BadRecord):
            records.read(path, offset, length)
        assert len(records.scan(path)[0]) == 1
    header = struct.pack("<Q", 2**40)
    (tmp_path / "a").write_bytes(header + struct.pack("<I", records.masked_crc(header)) + b"x")
    with pytest.raises(records.BadRecord, match="above the limit"):
        records.index(path)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), records.RecordWriter(str(tmp_path / "a")) as writer:
        writer.write(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="at most"), records.RecordWriter(str(tmp_path / "a")) as writer:
        writer.write(bytes(records.MAX_LENGTH + 1))


def test_indexing_is_quick(tmp_path):
    path = write(tmp_path / "a", [bytes(200)] * 10_000)
    start = time.perf_counter()
    assert len(records.index(path)) == 10_000
    assert time.perf_counter() - start < 1


def test_a_compressed_file_is_named_as_one(tmp_path):
    path = write(tmp_path / "a", payloads(np.random.default_rng(), 3))
    whole = (tmp_path / "a").read_bytes()
    for name, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress)):
        (tmp_path / "a").write_bytes(pack(whole))
        with pytest.raises(records.BadRecord, match=rf"a@0: the file is compressed \({name}\): unpack it first"):
            records.index(path)
        assert records.packing(pack(whole)) == name
    assert records.packing(whole) == records.packing(b"") == ""
    (tmp_path / "a").write_bytes(whole + gzip.compress(whole))
    with pytest.raises(records.BadRecord, match=f"a@{len(whole)}: the checksum of the length is wrong"):
        records.index(path)
