"""A function over many tasks in several processes or threads: results in the order of the tasks, few of them ahead."""

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading

AHEAD = 3  # tasks that wait for each process


def ordered(function, tasks, num_workers):
    """Yields function(task) of each task, in order.

    Args:
      function: of a module, not of a main: the processes import it.
      tasks: any iterable; it is read no further than the processes need.
      num_workers: processes; 1 computes in this one, 0 takes one a processor.

    An error of a task is raised at its turn. Raises ValueError where a process was killed.
    """
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        yield from map(function, tasks)
        return
    # Fresh processes: those of a fork would share the connections to gs://.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context, _begin) as pool:
        try:
            yield from ahead(pool, function, tasks, AHEAD * num_workers)
        except concurrent.futures.process.BrokenProcessPool:
            raise ValueError("a worker process was killed, for want of memory perhaps: fewer --num_workers") from None


def ahead(pool, function, tasks, depth):
    """The same on the threads or processes of a pool, `depth` tasks ahead of the one whose result is waited for."""
    pending = collections.deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _begin():
    """Ctrl-C is for the process that started this one; when that one is gone, however it ended, so is this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)
