"""Steps of commands, one after another: said, printed as one could type them, and passed over where they are done."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from itit.console import say
from tools.studies.processes import PATIENCE, PYTHON, ending_with, locked

LOCK = "lock"
WIDTH = 118  # of a command as it is printed
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Command(NamedTuple):
    """`python -m MODULE ARGUMENTS`. `done`: () -> whether what it makes is there, whole."""

    module: str
    arguments: tuple
    done: Callable


@contextlib.contextmanager
def alone(folder):
    """Yields the descriptor of the lock of a folder, which each command holds, too: what a killed call has left behind
    is told to end, and waited for. Raises ValueError where it does not end."""
    for second in range(PATIENCE):
        with locked(os.path.join(folder, LOCK)) as lock:
            if lock is not None:
                yield lock
                return
        if not second:
            say(f"{folder}: another process is at work in it; waits for its end")
        time.sleep(1)
    raise ValueError(f"{folder}: another process is at work in it; name another --output")


def carry_out(steps, count, lock):
    """Does what is not done.

    Args:
      steps: iterable of (title, iterable of Command), `count` of them; each is asked for when those before it are done.
      lock: descriptor, see `alone`.

    Returns:
      0, or the exit code of the command that has ended the whole.
    """
    for number, (title, commands) in enumerate(steps, 1):
        say(f"{number}/{count} {title}")
        for command in commands:
            if command.done():
                say(f"{command.module}: done before")
                continue
            say(typed(command))
            code = run(command, lock)
            if code:
                stopped = code - 128 in SIGNALS
                cause = "interrupted" if stopped else f"error: exit code {code} of {command.module}; its lines say why"
                say(f"{cause}. Step {number}/{count}: the same command goes on from here", sys.stderr)
                return code
    return 0


def typed(command):
    """A command as one could type it, in lines."""
    lines = ["$ python -m " + command.module]
    for argument in map(shlex.quote, command.arguments):
        if len(lines[-1]) + 1 + len(argument) > WIDTH:
            lines[-1] += " \\"
            lines.append("    " + argument)
        else:
            lines[-1] += " " + argument
    return "\n".join(lines)


def run(command, lock):
    """Runs a command to its end. Returns its exit code, 128 + the signal where one came or ended it.

    It has a session of its own, and signals are handed on, each once: Ctrl-C reaches whole groups of processes, and a
    training takes a second one for the wish to end at once. One that comes when the command is as good as done may
    change nothing there.
    """
    process, came = None, []

    def hand_on(number, _):
        came.append(number)
        if process:
            process.send_signal(number)

    former = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        process = subprocess.Popen(
            [*PYTHON, command.module, *command.arguments], stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"}, pass_fds=(lock,), preexec_fn=ending_with(os.getpid()),
        )  # fmt: skip
        for number in came:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return 128 + came[0] if came else code if code >= 0 else 128 - code
