"""Checkpoints saved while the steps go on: a save begins with copies of the numbers on the host; a thread writes."""

import concurrent.futures

from itit.checkpoint import store


class Saver:
    """Saves of a run, one at a time. A context manager: leaving it waits for the save under way.

    Args:
      workdir, meta, keep_last, keep_every: as for `store.save`.
      hosts: those of the run; savers speak on a line of their own. All hosts save the same steps.
    """

    def __init__(self, workdir, meta, keep_last, keep_every, hosts):
        self._where = workdir, meta, keep_last, keep_every, hosts.channel("save")
        self._pool, self._running = concurrent.futures.ThreadPoolExecutor(1, "save"), None

    def save(self, step, pieces, **notes):
        """Begins to save, once the save before is done.

        Args:
          pieces: as for `store.save`, copies: what happens to the state from now on does not reach them.
          notes: JSON values for the meta of this one.

        Raises what the save before failed with.
        """
        self.wait()
        workdir, meta, keep_last, keep_every, hosts = self._where
        self._running = self._pool.submit(
            store.save, workdir, step, pieces, meta | notes, keep_last, hosts, keep_every=keep_every
        )

    def check(self):
        """Raises what a save has failed with; to be called after every step. Waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self):
        """Returns when all is saved. Raises what the save failed with."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        # The failure of a save is raised before another one of this host, which may be its consequence.
        with self._pool:
            self.wait()
