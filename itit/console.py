"""Lines for whoever watches a run. One that cannot be written ends nothing: the reader is gone, the disk is full."""

import contextlib
import os
import sys


def say(line, stream=None):
    """Prints a line at once, to stdout or another stream. Where that fails, stderr hears of it, and what is printed to
    the stream from now on is lost."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        _silence(stream)
        if stream is not sys.stderr:
            say(f"warning: stdout: {error.strerror}: it goes on without; see TensorBoard", sys.stderr)


def _silence(stream):
    """Lets a stream end in nothing: what it still holds would fail again when the process exits."""
    with contextlib.suppress(OSError, ValueError):  # no file, in a test
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
