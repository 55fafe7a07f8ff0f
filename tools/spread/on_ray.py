"""Tasks on the machines of a Ray cluster (Ray core alone). The repository must be installed on each.

Ray starts a task again where its process or its machine is lost.
"""

import os
import socket

from itit import untrusted

try:
    import ray
except ModuleNotFoundError as error:
    raise ValueError(f"--distributor=ray needs Ray (pip install -e .[ray]): {error}") from None

TRIES = 5  # more, of a task that is lost or that the storage fails


def results(function, tasks, needs):
    """Yields the result of each task, as they are done. `needs`: see `Distribution.needs`.

    Raises ValueError where there is no cluster, none that has what a task needs, and with the message of a task's own.
    """
    _connect()
    _check(needs)
    other = {name: count for name, count in needs.items() if name not in ("CPU", "GPU")}
    remote = ray.remote(_run).options(
        name="shard", num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0),
        resources=other, max_retries=TRIES, retry_exceptions=[OSError],
    )  # fmt: skip
    pending = [remote.remote(function, task) for task in tasks]
    try:
        while pending:
            done, pending = ray.wait(pending)
            result, message = _get(done[0])
            if message is not None:
                raise ValueError(message)
            yield result
    finally:
        for task in pending:
            ray.cancel(task, force=True)


def _run(function, task):
    """In a worker: (result, None) or (None, message)."""
    try:
        return function(task), None
    except ValueError as error:
        return None, str(error)


def _get(task):
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, OSError) else ValueError(f"a task on Ray failed: {cause!r}") from None
    except ray.exceptions.RayError as error:
        first = untrusted.shown(str(error).strip().splitlines()[0])
        raise ValueError(f"a task on Ray was lost {TRIES + 1} times, for want of memory perhaps: {first}") from None


def _connect():
    if ray.is_initialized():
        return
    try:
        host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
        if host and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address="auto", log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        first = untrusted.shown(str(error).strip().splitlines()[0])
        raise ValueError(f"--distributor=ray: no Ray cluster is there (`ray start --head`, or set RAY_ADDRESS): "
                         f"{first}") from None  # fmt: skip


def _check(needs):
    """A task that no machine can take would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(name, 0) >= count for name, count in needs.items()) for machine in machines):
        there = " or ".join(sorted({", ".join(f"{name}:{machine.get(name, 0):g}" for name in ("CPU", "GPU", "TPU")
                                              if machine.get(name)) for machine in machines}))  # fmt: skip
        raise ValueError(f"--task_needs: no machine of the Ray cluster has {needs}; one has {there or 'nothing'}")
