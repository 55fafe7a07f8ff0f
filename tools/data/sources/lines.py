"""The lines of a file, plain or packed by gzip (.gz) or zstd (.zst), without ever holding more than one of them."""

import gzip
import io
import re
import zlib

from itit import storage
from tools.data.sources.item import MAX_TEXT, BadItem, utf8

try:
    import zstandard
except ModuleNotFoundError:
    zstandard = None

OF_TEXT = re.compile(r"\.txt(\.gz|\.zst)?$", re.IGNORECASE)  # ends of names of files of texts
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile) + ((zstandard.ZstdError,) if zstandard else ())
PIECE = 1024  # packed bytes at a time: a frame that unpacks to a million times its size stays small


def numbered(path):
    """Yields (number from 1, line as bytes without its end); in the place of one that is too long, and where the packed
    file is damaged, a BadItem."""
    number = 0
    try:
        with storage.open(path) as raw:
            file = _unpacked(path, raw)
            while line := file.readline(MAX_TEXT + 1):
                number += 1
                if len(line) <= MAX_TEXT or line.endswith(b"\n"):
                    yield number, line.rstrip(b"\r\n")
                    continue
                yield number, BadItem(f"{path}:{number}", f"line above the limit of {MAX_TEXT} bytes")
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_TEXT)
    except DAMAGE as error:
        yield number + 1, BadItem(f"{path}:{number + 1}", f"the packed file is damaged here: {error}")


def read(path):
    """[(number from 1, text)] of the lines of a short file that are not blank, trimmed and without byte order mark.

    Only line ends end a line: other separators of Unicode (U+2028) stay in it. Raises ValueError where it is not UTF-8.
    """
    found = []
    for number, line in enumerate(storage.read_bytes(path).splitlines(), 1):
        try:
            found.append((number, utf8(line).strip()))
        except ValueError:
            raise ValueError(f"{path}:{number}: not UTF-8") from None
    return [(number, line) for number, line in found if line]


def _unpacked(path, raw):
    if path.lower().endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)
    if path.lower().endswith(".zst"):
        if not zstandard:
            raise ValueError(f"{path}: .zst files need zstandard (pip install zstandard)")
        return io.BufferedReader(_Zstd(raw))
    return raw


class _Zstd(io.RawIOBase):
    """Frames of zstd, unpacked. zstandard's own reader takes a file that breaks off for one that ends."""

    def __init__(self, raw):
        self._raw, self._frame, self._packed, self._ready = raw, None, b"", memoryview(b"")

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self._ready:
            packed = self._packed or self._raw.read(PIECE)
            if not packed:
                if self._frame:
                    raise EOFError("it ends inside a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._packed = memoryview(self._frame.decompress(packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
