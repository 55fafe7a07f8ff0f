"""Batches prepared ahead of their step, on threads of their own."""

import collections
import concurrent.futures
import time


def prefetch(streams, start_step, depth):
    """Endless iterator over batches from `start_step` on, with up to `depth` of them made at once, ahead of their step.

    An error is raised by the `next` whose batch it hit, and by every later one. `wait_seconds` is how long the last
    `next` waited; `close()` ends the threads, after the batches that they are at.
    """
    return _Prefetch(streams, start_step, depth)


class _Prefetch:
    def __init__(self, streams, start_step, depth):
        self.wait_seconds = 0.0
        self._streams, self._step = streams, start_step
        self._pool = concurrent.futures.ThreadPoolExecutor(depth, "prefetch")
        self._batches = collections.deque()
        for _ in range(depth):
            self._begin()

    def __iter__(self):
        return self

    def __next__(self):
        start = time.perf_counter()
        batch = self._batches[0].result()  # a failed one stays where it is
        self.wait_seconds = time.perf_counter() - start
        self._batches.popleft()
        self._begin()
        return batch

    def close(self):
        self._pool.shutdown(cancel_futures=True)

    def _begin(self):
        self._batches.append(self._pool.submit(self._streams.batch, self._step))
        self._step += 1
