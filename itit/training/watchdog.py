"""Ends a process that hangs, and shows where: a job that waits for ever costs more than one that is begun again."""

import collections
import contextlib
import faulthandler
import statistics
import sys
import time

_FIRST = 2  # steps of a kind that compile, fill caches and are not watched
_KNOWN = 3  # windows that a median is taken of, at least


class Watchdog:
    """Watches steps. Where some take too long, the stacks of all threads go to stderr and the process exits with 1.

    That is done by faulthandler's own thread, which asks nothing of Python: it acts, too, where the main thread hangs
    in a library that holds the interpreter's lock.

    Args:
      factor: too long is this many times the median of `window` steps; 0: nothing is watched.
      seconds: and at least this long.
      window: steps between two readings of results. A device works behind its host, so that one step in so many may
        take the time of all.
    """

    def __init__(self, factor, seconds, window):
        self._factor, self._seconds, self._window = factor, seconds, window
        self._seen, self._windows = collections.Counter(), collections.deque(maxlen=100)
        self._spent = self._steps = 0

    @contextlib.contextmanager
    def step(self, kind):
        """Goes around a step. `kind`: hashable; the first steps of each, which compile, are not watched."""
        fresh = self._seen[kind] < _FIRST
        self._seen[kind] += 1
        limit = self.limit()
        if limit and not fresh:
            faulthandler.dump_traceback_later(limit, exit=True, file=sys.__stderr__)
        start = time.monotonic()
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self._note(time.monotonic() - start, fresh)

    def limit(self):
        """Seconds that the next step may take; None while there is nothing to compare with."""
        if not self._factor or len(self._windows) < _KNOWN:
            return None
        return max(self._seconds, self._factor * statistics.median(self._windows))

    def _note(self, seconds, fresh):
        if fresh:
            self._spent = self._steps = 0
            return
        self._spent, self._steps = self._spent + seconds, self._steps + 1
        if self._steps == self._window:
            self._windows.append(self._spent)
            self._spent = self._steps = 0
