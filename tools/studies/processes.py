"""Processes of a study: started, told to end with it, locked against others, and what they say last."""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time

from itit import storage

PYTHON = (sys.executable, "-m")
PATIENCE = 120  # seconds that a process has to save what it has
try:
    _PRCTL = ctypes.CDLL(None).prctl
except (AttributeError, OSError, TypeError):
    _PRCTL = None
PR_SET_PDEATHSIG = 1


def cores():
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def locked(path):
    """Yields the descriptor of a lock, or None where another process holds it. Closing it lets go."""
    storage.make_dirs(os.path.dirname(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield descriptor if _take(descriptor) else None
    finally:
        os.close(descriptor)


def _take(descriptor):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def start(module, arguments, log, threads, lock):
    """Starts `python -m MODULE ARGUMENTS`; what it says is added to the file `log`. It holds `lock`, a descriptor."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    with open(log, "ab") as file:
        file.write(f"$ python -m {module} {' '.join(arguments)}\n".encode())
        file.flush()
        # A session of its own: Ctrl-C reaches the study, which then tells each process once.
        return subprocess.Popen(
            [*PYTHON, module, *arguments], stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            start_new_session=True, pass_fds=(lock,), preexec_fn=ending_with(os.getpid()),
        )  # fmt: skip


def ending_with(parent):
    """What a new process does first, so that Linux tells it to end when `parent`, a PID, has: a function."""

    def ask():
        if _PRCTL:
            _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    return ask


def stop(processes):
    """Tells processes to end, and waits for them; those that do not are killed."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def last_line(log):
    """What a log says last, for a message."""
    lines = [line for line in tail(log).decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "(nothing said)"


def tail(path, length=16384):
    """The last bytes of a file; none of one that is not there."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - length))
        return file.read()
    return b""
