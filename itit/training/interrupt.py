"""Stopping a run between two steps, so that nothing of it is lost."""

import signal
import sys

from itit.console import say

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Raised in the middle of what may be left undone."""


class Interrupt:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a save at the end of the step; a second one ends the process at
    once, but for SIGHUP, which a lost connection may send twice. Where SIGHUP is ignored (nohup) it stays so."""

    def __init__(self):
        self.signal = None
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)

    def stops(self, backend, step, log_every):
        """Whether to save and leave after `step` steps. Several hosts do so after the same step, which they agree on
        after every one where that costs nothing, else where metrics are due."""
        due = backend.hosts.count == 1 or backend.hosts.agrees_at_once or step % log_every == 0
        return due and backend.hosts.any(self.signal is not None)

    def ended(self, stop, step, workdir, says=True):
        """Says where a run was told to stop, if it was. Returns the exit code: 0, or 128 + the signal.

        Args:
          stop: whether its loop was left for a signal, which another host may have had: it counts as SIGTERM.
          step: steps done.
          says: False where another process says it on the same screen.
        """
        if not stop and self.signal is None:
            return 0
        saved = f"saved step {step}" if step else "before the first step, nothing saved"
        if says:
            say(f"interrupted: {saved} in {workdir}; the same command goes on", sys.stderr)
        return 128 + (self.signal or signal.SIGTERM)


class Stoppable:
    """A runner (see program.py) that raises Interrupted between two calls, once there was a signal."""

    def __init__(self, run, interrupt):
        self._run, self._interrupt = run, interrupt

    def __call__(self, function, *args, **options):
        if self._interrupt.signal is not None:
            raise Interrupted
        return self._run(function, *args, **options)

    def __getattr__(self, name):
        return getattr(self._run, name)
