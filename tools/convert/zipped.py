"""Where the files of a zip archive lie that were stored as they are, as PyTorch writes them: nothing is unpacked.

The format: the files, each behind a header of its own; a directory that repeats the headers; its end, where reading
begins, and which zip64 extends. (PKWARE's APPNOTE.TXT, 4.3 and 4.5.)
"""

import struct

END, END64_AT, END64, ENTRY, LOCAL = b"PK\5\6", b"PK\6\7", b"PK\6\6", b"PK\1\2", b"PK\3\4"
MAX_DIRECTORY, MAX_COMMENT = 2**25, 2**16
ZIP64, FULL = 1, 2**32 - 1  # kind of the extra field, and what stands in the place of a number that is in it
ENCRYPTED = 1


def stored_files(data):
    """Name -> slice of the bytes of a whole archive, or of a memory map of it.

    Raises ValueError, one line, for what is damaged, packed, encrypted, twice there or lies elsewhere than it says.
    """
    begin, size, count = _directory(data)
    if size > MAX_DIRECTORY or begin < 0 or begin + size > len(data):
        raise ValueError(f"its directory of {size} bytes at {begin} cannot be: {len(data)} bytes in all")
    files, place = {}, begin
    for _ in range(count):
        if data[place : place + 4] != ENTRY or place + 46 > begin + size:
            raise ValueError(f"its directory breaks off after {len(files)} of {count} files")
        flags, method, packed, length, name, extra, comment, at = struct.unpack_from("<4xHH8xIIHHH8xI", data, place + 4)
        end = place + 46 + name + extra
        name, extra = data[place + 46 : place + 46 + name], data[end - extra : end]
        place = end + comment
        text = name.decode("utf-8", "backslashreplace")
        if method or flags & ENCRYPTED:
            raise ValueError(f"{text[:80]!r} in it is packed or encrypted, which PyTorch does not do")
        length, packed, at = _long_numbers((length, packed, at), extra)
        if text in files:
            raise ValueError(f"{text[:80]!r} is in it twice")
        files[text] = _place(data, begin, name, length, packed, at)
    return files


def _directory(data):
    """(begin, size, number of files) of the directory."""
    tail_at = max(0, len(data) - MAX_COMMENT - 22)
    at = tail_at + data[tail_at:].rfind(END)
    if at < tail_at or at + 22 > len(data):
        raise ValueError("the end of a zip archive is not there; cut off?")
    count, size, begin = struct.unpack_from("<10xHII", data, at)
    if data[max(0, at - 20) : at][:4] == END64_AT:
        (at,) = struct.unpack_from("<8xQ", data, at - 20)
        if at + 56 > len(data) or data[at : at + 4] != END64:
            raise ValueError("the end of its zip64 directory is not where it says")
        count, size, begin = struct.unpack_from("<32xQQQ", data, at)
    return begin, size, count


def _long_numbers(numbers, extra):
    """(length, packed length, place), with those that need 64 bits taken from the extra field."""
    place, longs = 0, b""
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, place)
        if kind == ZIP64:
            longs = extra[place + 4 : place + 4 + size]
        place += 4 + size
    needed = sum(number == FULL for number in numbers)
    if len(longs) < 8 * needed:
        return numbers
    found = iter(struct.unpack_from(f"<{needed}Q", longs))
    return tuple(next(found) if number == FULL else number for number in numbers)


def _place(data, end, name, length, packed, at):
    """The slice of a file whose header is at `at`; all of it before the directory, which is at `end`."""
    text = name.decode("utf-8", "backslashreplace")[:80]
    if at + 30 > end or data[at : at + 4] != LOCAL:
        raise ValueError(f"{text!r} in it is not where it says")
    named, extra = struct.unpack_from("<26xHH", data, at)
    begin = at + 30 + named + extra
    if data[at + 30 : at + 30 + named] != name or packed != length or begin + length > end:
        raise ValueError(f"{text!r} in it has {length} bytes at {begin}, and {end} are there; cut off?")
    return slice(begin, begin + length)
