"""Files, local or on Google Cloud Storage (`gs://bucket/name`), behind one set of names.

Local files are written under a temporary name, flushed to disk and renamed, so that a visible file is whole. An object
on `gs://` appears when its upload ends; nothing is renamed or copied there, so what belongs together is named by an
object that is written last (see checkpoint/store.py).

Missing files raise OSError as usual; what a user typed wrongly raises ValueError with one line. A request to `gs://` is
repeated by gcsfs, up to six times within about half a minute, with growing and jittered pauses, where the answer is
408, 429 or 5xx or the connection breaks or falls silent; what is left after that is an OSError that names the path.
"""

import builtins
import contextlib
import errno
import fcntl
import functools
import glob as local_glob
import hashlib
import logging
import mmap
import os
import re
import shutil
import stat
import tempfile

import fsspec

REMOTE = "gs://"
CHUNK = 2**26  # bytes read at once where a whole file goes by
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HIDDEN = re.compile(r"(^|/)\.")


def is_remote(path):
    """Whether a path is on gs://. Raises ValueError for what would silently become a folder here: ~, another scheme, a
    space before one."""
    if re.match(r"gs://[^/]", path):
        return True
    if path[:1].isspace():
        raise ValueError(f"{path!r}: must not begin with a space")
    if path.startswith("~"):
        raise ValueError(f"{path}: ~ stands for no folder here; write it out, or ./~ for a file of that name")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", path):
        raise ValueError(f"{path}: must be a local path or gs://BUCKET/NAME")
    return False


@contextlib.contextmanager
def _remote(path):
    """The file system of gs://, for work on `path`: its failures are OSErrors."""
    try:
        yield _connect(os.getpid())
    except FileNotFoundError:  # which names an address inside the storage, or nothing
        raise FileNotFoundError(errno.ENOENT, "no such file or bucket", path) from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # gcsfs and aiohttp have a dozen of their own
        raise OSError(f"{path}: {error or repr(error)}") from error


@functools.lru_cache(1)
def _connect(pid):  # not across a fork: connections are tied to a thread of their process
    try:
        import aiohttp  # gcsfs brings it; local files do without the seconds that both take

        make = fsspec.get_filesystem_class("gs")
    except ImportError as error:
        raise ValueError(f"gs:// paths need gcsfs (pip install gcsfs): {error}") from None
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints stacks of what is raised to us anyway
    logging.getLogger("fsspec").setLevel(logging.WARNING)  # it tells of each file that is opened
    # Without limits a connection that falls silent is waited for for ever. Other hosts write, too: no list is kept.
    patience = aiohttp.ClientTimeout(sock_connect=30, sock_read=120)
    return make(use_listings_cache=False, requests_timeout=patience)


def join(*parts):
    """Parts of a path with single slashes between them, for local paths and gs://."""
    return os.path.join(*parts)


def glob(patterns):
    """Files that match comma-separated patterns, sorted, each once.

    Brackets and commas may also be of the names themselves: they are taken so where nothing matches otherwise.

    Raises ValueError naming the pattern that matches no file.
    """
    return list(stamps(patterns))


def stamps(patterns):
    """`glob` with what tells each file from a later one in its place: path -> its size and its time, or its version on
    gs://, in one text."""
    found = {}
    for pattern in (part.strip() for part in patterns.split(",")):
        names = _matches(pattern)
        if not names and "," in patterns:
            return dict(sorted((_matches(patterns.strip()) or _no_match(pattern)).items()))
        found |= names or _no_match(pattern)
    return dict(sorted(found.items()))


def _matches(pattern):
    """The files of one pattern; where there are none, those of the pattern with its brackets as they are written."""
    return _expand(pattern) or _expand(pattern.replace("[", "[[]"))


def _expand(pattern):
    if is_remote(pattern):
        with _remote(pattern) as remote:
            found = remote.glob(pattern.removeprefix(REMOTE), detail=True)
        return {REMOTE + name: f"{info['size']} {info.get('generation')}"
                for name, info in found.items() if info["type"] == "file"}  # fmt: skip
    names = [name for name in local_glob.glob(pattern, recursive=True) if os.path.isfile(name)]
    return {name: f"{info.st_size} {info.st_mtime_ns}" for name in names for info in [os.stat(name)]}


def _no_match(pattern):
    if list_dir(pattern):
        raise ValueError(f"no file matches {pattern!r}: it is a folder; all in it: {join(pattern, '*')!r}")
    raise ValueError(f"no file matches {pattern!r}")


def list_files(folder):
    """Paths of all files in a folder and below it, sorted; what begins with a dot is left out. Absent: none.

    Unlike in a pattern, any character of the folder's name stands for itself.
    """
    folder = folder.rstrip("/") or "/"
    if is_remote(folder):
        with _remote(folder) as remote:
            inner = [(REMOTE + name).removeprefix(folder + "/") for name in remote.find(folder)]
    else:
        inner = [os.path.relpath(os.path.join(place, name), folder)
                 for place, _, names in _walk(folder) for name in names]  # fmt: skip
        inner = [name for name in inner if os.path.isfile(os.path.join(folder, name))]
    return sorted(join(folder, name) for name in inner if not name.endswith("/") and not _HIDDEN.search(name))


def _walk(folder):
    """os.walk through links, too, but never through one that leads back to where it lies in."""
    for place, folders, names in os.walk(folder, followlinks=True):
        above = os.path.realpath(place) + os.sep
        folders[:] = [name for name in folders if not name.startswith(".")
                      and not above.startswith(os.path.realpath(os.path.join(place, name)) + os.sep)]  # fmt: skip
        yield place, folders, names


def open(path, mode="rb"):
    """A file object for reading; `writer` is for writing."""
    if not is_remote(path):
        return builtins.open(path, mode)
    with _remote(path) as remote:
        return remote.open(path, mode)


def open_regular(path):
    """`open` of a file in a folder that somebody else made: of no device, pipe or folder, which may never end.

    Links are followed, as Hugging Face's cache is made of them. Raises ValueError naming what is no file.
    """
    if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: must be a regular file")
    return open(path)


def read_bytes(path):
    """All bytes of a file."""
    if not is_remote(path):
        with builtins.open(path, "rb") as file:
            return file.read()
    with _remote(path) as remote:
        return remote.cat_file(path)


def read_small(path, most=2**26):
    """All bytes of a file that somebody else made and that is no large one: `open_regular`, up to `most` bytes.

    Raises ValueError for a larger one, before it is read.
    """
    if size(path) > most:
        raise ValueError(f"{path}: {size(path)} bytes: must be at most {most}")
    with open_regular(path) as file:
        return file.read(most)


def read_range(path, offset, length):
    """Up to `length` bytes from `offset`; fewer only where the file ends."""
    if is_remote(path):
        with _remote(path) as remote:
            return remote.cat_file(path, start=offset, end=offset + length)
    with builtins.open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def size(path):
    """Bytes of a file."""
    if not is_remote(path):
        return os.path.getsize(path)
    with _remote(path) as remote:
        return remote.size(path)


def sha256(path):
    """SHA-256 of a file as hex digits, read piece by piece."""
    digest = hashlib.sha256()
    with open(path) as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def exists(path):
    """Whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    with _remote(path) as remote:
        return remote.exists(path)


def list_dir(path):
    """Names (not paths) in a folder, sorted. An absent folder has none: gs:// has no empty folders."""
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    with _remote(path) as remote, contextlib.suppress(FileNotFoundError):
        return sorted(os.path.basename(name.rstrip("/")) for name in remote.ls(path, detail=False))
    return []


def make_dirs(path):
    """Makes a folder and its parents, and flushes their names to disk. Nothing to do on gs://."""
    if is_remote(path):
        return
    new, folder = [], os.path.abspath(path)
    while not os.path.isdir(folder):
        new.append(folder)
        folder = os.path.dirname(folder)
    os.makedirs(path, exist_ok=True)
    for folder in new:
        _sync(os.path.dirname(folder))


def remove_tree(path):
    """Removes a file or a folder with all that is in it. Absent: nothing happens."""
    if is_remote(path):
        # Absent it may be, too, since a request was repeated whose answer was lost.
        with _remote(path) as remote, contextlib.suppress(FileNotFoundError):
            remote.rm(path, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


@contextlib.contextmanager
def writer(path):
    """Binary file object for a new file at `path`, visible there once the block ends well, and gone if it fails.

    For gs:// it is filled on the disk here and uploaded at the end.
    """
    if is_remote(path):
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            large = os.fstat(file.fileno()).st_size > CHUNK
            file.seek(0)
            _upload(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if large else file.read())
        return
    # A leading dot, so that no pattern takes what a killed process left for a shard.
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp-{os.getpid()}")
    try:
        with _begin(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        # A full disk names no file, a rename one that nobody knows.
        if isinstance(error, OSError) and (error.errno in _FULL or error.filename == temporary):
            error.filename, error.filename2 = path, None
        raise
    _sync(os.path.dirname(path) or ".")


def _begin(path):
    """A new file, locked: so `remove_rests` knows that somebody is writing it."""
    while True:
        file = builtins.open(path, "wb")  # noqa: SIM115 (the caller closes it)
        with contextlib.suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):  # removed between the two
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def remove_rests(folder):
    """Removes what `writer` was filling in a local folder when its process was killed. What is written now stays."""
    for name in [] if is_remote(folder) else list_dir(folder):
        if re.fullmatch(r"\..+\.tmp-\d+", name):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), builtins.open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(path)


def write_bytes(path, data, former=None):
    """A file with these bytes: whole, or the former file stays as it was (on gs:// as long as the upload runs).

    Args:
      former: what `version` said before, for an object on gs://.

    Raises ValueError where the object is not that of `former` any more: another process has written it.
    """
    if is_remote(path):
        _upload(path, data, former)
        return
    with writer(path) as file:
        file.write(data)


def _upload(path, data, former=None):
    # Never by gcsfs' upload in parts of one message: a server may take a last byte "\r" for a part of its boundary.
    with _remote(path) as remote:
        if len(data) > CHUNK and former is None:  # in pieces, of which a broken connection costs one
            remote.pipe_file(path, data, chunksize=CHUNK)
            return
        bucket, _, name = path.removeprefix(REMOTE).partition("/")
        try:
            remote.call(
                "POST", remote.base.replace("/storage/", "/upload/storage/") + "b/{}/o", bucket, name=name, data=data,
                uploadType="media", ifGenerationMatch=former, headers={"Content-Type": "application/octet-stream"},
            )  # fmt: skip
        except FileExistsError:
            if remote.cat_file(path) != data:  # ours it is where a request was repeated whose answer was lost
                raise ValueError(
                    f"{path}: written by another process meanwhile; is another run at work here?"
                ) from None


def version(path):
    """The generation of an object on gs://, for `write_bytes`; 0 where there is none. None for a local file."""
    if not is_remote(path):
        return None
    with _remote(path) as remote:
        try:
            return int(remote.info(path)["generation"])
        except FileNotFoundError:
            return 0


def commit_dir(staging, final):
    """Makes the finished local folder `staging` visible as `final`, which must not be there: flushed, then renamed."""
    assert not is_remote(final), final
    for folder, _, names in os.walk(staging):
        for name in names:
            _sync(os.path.join(folder, name))
        _sync(folder)
    os.rename(staging, final)
    _sync(os.path.dirname(os.path.abspath(final)))


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
