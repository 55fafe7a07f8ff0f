"""Files, local or on Google Cloud Storage (`gs://bucket/name`), behind one set of names.

Local files are written under a temporary name, flushed to disk and renamed, so that a visible file is whole. An object
on `gs://` appears when its upload ends. Missing files raise OSError as usual; what a user typed wrongly raises
ValueError with one line.
"""

import builtins
import contextlib
import glob as local_glob
import hashlib
import os
import shutil

import fsspec

REMOTE = "gs://"
CHUNK = 2**26  # bytes read at once where a whole file goes by


def is_remote(path):
    return path.startswith(REMOTE)


def _remote():
    try:
        return fsspec.filesystem("gs")
    except ImportError as error:
        raise ValueError(f"gs:// paths need gcsfs (pip install gcsfs): {error}") from None


def join(*parts):
    """Parts of a path with single slashes between them, for local paths and gs://."""
    return os.path.join(*parts)


def glob(patterns):
    """Files that match comma-separated patterns, sorted, each once.

    Raises ValueError naming the pattern that matches no file.
    """
    found = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        if is_remote(pattern):
            matches = _remote().glob(pattern.removeprefix(REMOTE), detail=True)
            names = [REMOTE + name for name, info in matches.items() if info["type"] == "file"]
        else:
            names = [name for name in local_glob.glob(pattern, recursive=True) if os.path.isfile(name)]
        if not names:
            raise ValueError(f"no file matches {pattern!r}")
        found.update(names)
    return sorted(found)


def open(path, mode="rb"):
    """A file object. For writing use `writer`, which leaves no half-written file."""
    return _remote().open(path, mode) if is_remote(path) else builtins.open(path, mode)


def read_bytes(path):
    """All bytes of a file."""
    with open(path) as file:
        return file.read()


def read_range(path, offset, length):
    """Up to `length` bytes from `offset`; fewer only where the file ends."""
    if is_remote(path):
        return _remote().cat_file(path, start=offset, end=offset + length)
    with builtins.open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, offset)


def size(path):
    """Bytes of a file."""
    return _remote().size(path) if is_remote(path) else os.path.getsize(path)


def sha256(path):
    """SHA-256 of a file as hex digits, read piece by piece."""
    digest = hashlib.sha256()
    with open(path) as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def exists(path):
    """Whether a file or folder is there."""
    return _remote().exists(path) if is_remote(path) else os.path.exists(path)


def list_dir(path):
    """Names (not paths) in a folder, sorted. An absent folder has none: gs:// has no empty folders."""
    if is_remote(path):
        remote = _remote()
        if not remote.exists(path):
            return []
        return sorted(os.path.basename(name.rstrip("/")) for name in remote.ls(path, detail=False))
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


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
        if _remote().exists(path):
            _remote().rm(path, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


@contextlib.contextmanager
def writer(path):
    """Binary file object for a new file at `path`, visible there once the block ends well, and gone if it fails."""
    if is_remote(path):
        try:
            with _remote().open(path, "wb") as file:
                yield file
        except BaseException:
            with contextlib.suppress(OSError):
                remove_tree(path)
            raise
        return
    # A leading dot, so that no pattern takes what a killed process left for a shard.
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.tmp-{os.getpid()}")
    try:
        with builtins.open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync(os.path.dirname(path) or ".")


def write_bytes(path, data):
    """A file with these bytes: whole, or the former file stays as it was (on gs:// as long as the upload runs)."""
    with writer(path) as file:
        file.write(data)


def commit_dir(staging, final):
    """Makes the finished folder `staging` visible as `final`, which must not be there.

    Local: everything is flushed to disk, then one rename. On gs:// a rename is many copies, so the caller writes an
    object of its own after this call that marks the folder as whole.
    """
    if is_remote(final):
        remote = _remote()
        root = staging.removeprefix(REMOTE).rstrip("/")
        for name in remote.find(root):
            remote.copy(name, join(final.removeprefix(REMOTE), name.removeprefix("/").removeprefix(root).lstrip("/")))
        remote.rm(root, recursive=True)
        return
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
