"""TFRecord files of `tf.train.Example`, read and written without TensorFlow.

A record is: length (uint64, little endian), masked CRC32C of those 8 bytes, payload, masked CRC32C of the payload.
Both checksums are always checked, and every length is bounded before anything is allocated.

An Example maps names to lists of bytes, float32 or int64. Ours hold "image" (an encoded picture) or "image_ids", "text"
(UTF-8) or "text_ids", and "key". Wire format: protocol buffers, `Example{1: Features{1: map<string, Feature>}}`,
`Feature{1: BytesList | 2: FloatList | 3: Int64List}`, each list with its values in field 1.

R is the number of records of a file.
"""

import struct

import google_crc32c
import numpy as np

from itit import storage

MAX_LENGTH = 256 * 2**20
HEADER, FOOTER = 12, 4
BYTES, FLOATS, INTS = 1, 2, 3
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\3\4": "zip",
           b"\x04\x22\x4d\x18": "lz4"}  # fmt: skip


class BadRecord(ValueError):
    """A record that cannot be used. The message is `path@offset: cause`."""

    def __init__(self, path, offset, cause):
        super().__init__(f"{path}@{offset}: {cause}")


def packing(head):
    """What the first bytes of a file say that it is compressed by: "gzip", ..., or "" where they say nothing."""
    return next((name for start, name in _PACKED.items() if head.startswith(start)), "")


def masked_crc(data):
    """CRC32C rotated right by 15 bits plus a constant, as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class RecordWriter:
    """Writes one TFRecord file; a context manager. The file appears when the block ends well, else not at all.

    `spans` lists (offset, payload length) of what is written so far; `size` is the bytes of it.
    """

    def __init__(self, path):
        self._context = storage.writer(path)
        self.spans, self.size = [], 0

    def __enter__(self):
        self._file = self._context.__enter__()
        return self

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def write(self, payload):
        """Appends one record. Raises ValueError above 256 MiB."""
        if len(payload) > MAX_LENGTH:
            raise ValueError(f"record of {len(payload)} bytes: must be at most {MAX_LENGTH}")
        length = struct.pack("<Q", len(payload))
        self._file.write(length + struct.pack("<I", masked_crc(length)))
        self._file.write(payload + struct.pack("<I", masked_crc(payload)))
        self.spans.append((self.size, len(payload)))
        self.size += HEADER + len(payload) + FOOTER


def scan(path):
    """Where the records of a file lie, as far as its framing can be followed.

    Returns:
      int64 [R, 2]: offset of the record's first byte in the file, length of its payload.
      None, or the BadRecord at which the framing breaks: nothing after it can be read.
    """
    end, offset, spans, broken = storage.size(path), 0, [], None
    with storage.open_regular(path) as file:
        while offset < end:
            file.seek(offset)
            try:
                length = _length(path, offset, file.read(HEADER))
                if offset + HEADER + length + FOOTER > end:
                    raise BadRecord(path, offset, "the file ends inside this record")
            except BadRecord as error:
                broken = error
                break
            spans.append((offset, length))
            offset += HEADER + length + FOOTER
    return np.array(spans, np.int64).reshape(-1, 2), broken


def index(path):
    """int64 [R, 2], offset and payload length of every record; payloads are not read. Raises BadRecord."""
    spans, broken = scan(path)
    if broken:
        raise broken
    return spans


def read(path, offset, length):
    """The payload of the record at `offset`, as `index` lists it. Raises BadRecord if anything is damaged."""
    return payload(path, offset, length, storage.read_range(path, offset, HEADER + length + FOOTER))


def payload(path, offset, length, data):
    """The payload in `data`, the bytes of the record at `offset`. Raises BadRecord if anything is damaged."""
    if _length(path, offset, data[:HEADER]) != length:
        raise BadRecord(path, offset, f"its length is not {length}")
    content = data[HEADER : HEADER + length]
    if len(data) < HEADER + length + FOOTER:
        raise BadRecord(path, offset, "the file ends inside this record")
    if struct.unpack_from("<I", data, HEADER + length)[0] != masked_crc(content):
        raise BadRecord(path, offset, "the checksum of the payload is wrong")
    return content


def walk(path, offset, data):
    """Where the records lie in `data`, the bytes of a file from `offset` to where a record should end.

    Returns:
      int64 [R, 2] as `scan`, and None or the BadRecord at which the framing breaks.
    """
    spans, place = [], 0
    while place < len(data):
        try:
            length = _length(path, offset + place, data[place : place + HEADER])
            if place + HEADER + length + FOOTER > len(data):
                raise BadRecord(path, offset + place, "the file ends inside this record, or has changed")
        except BadRecord as error:
            return np.array(spans, np.int64).reshape(-1, 2), error
        spans.append((offset + place, length))
        place += HEADER + length + FOOTER
    return np.array(spans, np.int64).reshape(-1, 2), None


def _length(path, offset, header):
    if len(header) < HEADER:
        raise BadRecord(path, offset, "the file ends inside this record's length")
    length, crc = struct.unpack("<QI", header)
    packed = crc != masked_crc(header[:8]) and offset == 0 and packing(header)
    if packed:
        raise BadRecord(path, offset, f"the file is compressed ({packed}): unpack it first, records are read in place")
    if crc != masked_crc(header[:8]):
        raise BadRecord(path, offset, "the checksum of the length is wrong, so the rest of the file cannot be read")
    if length > MAX_LENGTH:
        raise BadRecord(path, offset, f"{length} bytes, above the limit of {MAX_LENGTH}")
    return length


def encode_example(features):
    """A `tf.train.Example` as bytes.

    Args:
      features: name -> bytes, str (stored as UTF-8), list of ints, or 1-D array (integers as int64, floats as float32).
    """
    entries = (
        _field(1, _field(1, name.encode()) + _field(2, _encode_feature(name, features[name])))
        for name in sorted(features)
    )
    return _field(1, b"".join(entries))


def _encode_feature(name, value):
    if isinstance(value, bytes | str):
        return _field(BYTES, _field(1, value.encode() if isinstance(value, str) else value))
    array = np.asarray(value, None if len(value) else np.int64) if isinstance(value, list) else value
    kind = getattr(getattr(array, "dtype", None), "kind", None)
    if kind not in ("i", "u", "f") or array.ndim != 1:
        raise ValueError(f"feature {name!r}: must be bytes, str, or a 1-D list or array of numbers")
    if kind == "f":
        return _field(FLOATS, _field(1, array.astype("<f4").tobytes()))
    return _field(INTS, _field(1, _pack_varints(array)))


def _field(number, payload):
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _pack_varints(numbers):
    """The inverse of `_unpack_varints`."""
    numbers = numbers.astype(np.int64).astype(np.uint64)
    most = max(1, -(-int(numbers.max(initial=0)).bit_length() // 7))
    groups = numbers[:, None] >> np.arange(0, 7 * most, 7, dtype=np.uint64)
    # A further byte follows as long as anything is left above this one.
    used, more = np.ones(groups.shape, bool), np.zeros(groups.shape, np.uint64)
    used[:, 1:] = groups[:, 1:] > 0
    more[:, :-1] = used[:, 1:]
    return (groups & 127 | more << np.uint64(7)).astype(np.uint8)[used].tobytes()


def decode_example(payload):
    """The inverse of `encode_example`, for any well-formed `tf.train.Example`; unknown fields are passed over.

    Returns:
      name -> list[bytes], int64 array or float32 array, the arrays 1-D. A feature of no kind is left out.

    Raises:
      ValueError: the bytes are not an Example.
    """
    features = {}
    for features_message in _messages(payload, 1):
        for entry in _messages(features_message, 1):
            name, value = b"", b""
            for number, wire, content in _fields(entry):
                if wire == 2 and number == 1:
                    name = content
                elif wire == 2 and number == 2:
                    value = content
            decoded = _decode_feature(value)
            if decoded is not None:
                features[str(name, "utf-8")] = decoded
    return features


def _decode_feature(data):
    kind, values = None, []
    for number, wire, content in _fields(data):
        if wire == 2 and number in (BYTES, FLOATS, INTS):
            values = values if number == kind else []
            kind = number
            values += [_values(kind, inner, item) for field, inner, item in _fields(content) if field == 1]
    if kind is None:
        return None
    if kind == BYTES:
        return values
    return np.concatenate([np.zeros(0, np.float32 if kind == FLOATS else np.int64), *values])


def _values(kind, wire, content):
    """One entry of a list: bytes, or the array of one unpacked or many packed numbers."""
    if kind == BYTES and wire == 2:
        return content
    if kind == FLOATS and wire in (2, 5):
        if len(content) % 4:
            raise ValueError("not a tf.train.Example: a float is cut off")
        return np.frombuffer(content, "<f4").astype(np.float32)
    if kind == INTS and wire == 2:
        return _unpack_varints(content)
    if kind == INTS and wire == 0:
        return np.array([content], np.uint64).astype(np.int64)
    raise ValueError("not a tf.train.Example: a value has the wrong type")


def _unpack_varints(data):
    """int64 [n] of n varints one after another."""
    raw = np.frombuffer(data, np.uint8)
    if not len(raw):
        return np.zeros(0, np.int64)
    ends = np.flatnonzero(raw < 128)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("not a tf.train.Example: a number is cut off")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > 10:
        raise ValueError("not a tf.train.Example: a number has more than 10 bytes")
    shifts = (np.arange(len(raw)) - np.repeat(starts, sizes)).astype(np.uint64) * np.uint64(7)
    return np.add.reduceat((raw & 127).astype(np.uint64) << shifts, starts).astype(np.int64)


def _messages(data, wanted):
    return (content for number, wire, content in _fields(data) if wire == 2 and number == wanted)


def _fields(data):
    """Yields (field number, wire type, content) of a message: int for wire type 0, else bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        wire = tag & 7
        if wire == 0:
            content, position = _read_varint(data, position)
        elif wire in (1, 2, 5):
            length, position = _read_varint(data, position) if wire == 2 else (8 if wire == 1 else 4, position)
            if length > len(data) - position:
                raise ValueError("not a tf.train.Example: a field is longer than what holds it")
            content = data[position : position + length]
            position += length
        else:
            raise ValueError(f"not a tf.train.Example: wire type {wire}")
        yield tag >> 3, wire, content


def _read_varint(data, position):
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & 0xFFFFFFFFFFFFFFFF, position
    raise ValueError("not a tf.train.Example: a number is cut off")
