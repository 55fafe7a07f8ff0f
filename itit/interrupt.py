"""Stopping a run between two steps, so that nothing of it is lost."""

import signal


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a save at the end of the step; a second one ends the process at once."""

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

    def stops(self, backend, step, log_every):
        """Whether to save and leave after `step` steps. Several hosts do so after the same step, which they agree on
        where metrics are due."""
        due = backend.hosts.count == 1 or step % log_every == 0
        return due and backend.hosts.any(self.signal is not None)

    def exit_code(self):
        """Of a run that was told to stop: 128 + the signal; SIGTERM where another host had it."""
        return 128 + (self.signal or signal.SIGTERM)
