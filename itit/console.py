"""Lines for whoever watches a run. One that cannot be written ends nothing: the reader is gone, the disk is full."""

import contextlib
import os
import sys
import textwrap

WIDTH, INDENT = 80, 4 * " "  # columns of a terminal that nobody has widened


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


def listed(words):
    """Words, such as names with their numbers, in indented lines of 80 columns, none of them cut in two."""
    text = "  ".join(word.replace(" ", "\0") for word in words)
    form = {"initial_indent": INDENT, "subsequent_indent": INDENT, "break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, WIDTH, **form).replace("\0", " ")


def counted(number, thing):
    """ "1 shard", "2 shards"."""
    return f"{number} {thing}" + "s" * (number != 1)


def _silence(stream):
    """Lets a stream end in nothing: what it still holds would fail again when the process exits."""
    with contextlib.suppress(OSError, ValueError):  # no file, in a test
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
