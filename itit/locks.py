"""One process at a time at work in a local folder, or on one output. On gs:// nothing is locked (see
checkpoint/store.py); there the later of two may ask the earlier one to leave (`claim`).

A lock is held by the system on a file: it ends with its process, however that ends, and a file that a killed one leaves
locks nothing.
"""

import contextlib
import fcntl
import os
import socket

from itit import storage

NAME = ".lock"


@contextlib.contextmanager
def hold(path, what):
    """Holds the lock file at `path` while the block runs; its folder is made, and goes again where nothing came into
    it. Where the file system knows no locks, the block runs without.

    Raises ValueError, one line that names `what`, where another process holds it.
    """
    storage.is_remote(os.path.dirname(path))  # where that is no path, it is said of it and not of the lock
    if storage.is_remote(path):
        yield
        return
    folder = os.path.dirname(path) or "."
    is_new = not os.path.isdir(folder)
    storage.make_dirs(folder)
    descriptor = _take(path, what)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)  # while it is locked: who has opened it meanwhile sees that it is gone
        os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def claim(path, what):
    """`hold`, and on gs:// what comes near to it: whoever begins last has it. Yields a function that raises ValueError,
    one line that names `what`, where another process has taken it; to be asked now and then, and where work fails."""
    storage.is_remote(os.path.dirname(path))
    if not storage.is_remote(path):
        with hold(path, what):
            yield lambda: None
        return
    storage.write_bytes(path, f"PID {os.getpid()} on {socket.gethostname()}".encode())
    mine = storage.version(path)

    def check():
        if storage.version(path) != mine:
            raise ValueError(f"{what}: another process has begun on it meanwhile, and goes on with it alone")

    yield check
    check()
    storage.remove_tree(path)


@contextlib.contextmanager
def of_run(workdir, hosts):
    """The lock of a run that all hosts share: the leading one holds it, and all fail where it cannot."""
    storage.is_remote(workdir)  # where it is no path, that is said of it and not of the lock
    with contextlib.ExitStack() as stack:
        lock = hold(storage.join(workdir, NAME), workdir)
        hosts.together(lambda: stack.enter_context(lock) if hosts.leads else None)
        yield


def beside(output):
    """Path of the lock of a file or folder that is not there yet, or whose name begins others."""
    storage.is_remote(output)
    folder, name = os.path.split(output.rstrip("/"))
    return storage.join(folder, f".{name}{NAME}")


def _take(path, what):
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(f"{what}: in use by another process ({holder or 'just begun'}); wait for its end, or name "
                             "another") from None  # fmt: skip
        except OSError:  # no locks here
            return descriptor
        # The holder before may have removed the file since it was opened.
        if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"PID {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)
