"""What the tests of several hosts share: functions in real processes, one a host, that find each other over TCP.

`launch` starts them as torchrun does, without its supervision.
"""

import datetime
import multiprocessing
import os
import time
import traceback

import torch
import torch.distributed

from itit.hosts import Hosts, over_tcp
from tests.helpers.common import free_port

PATIENCE = 400  # seconds for a result, on a machine that does other work


def start(function, count, *args, timeout=20):
    """Starts `function(hosts, *args)` in `count` processes. `timeout`: seconds that a host waits for another.

    Returns [(process, the pipe that its result comes from)].
    """
    return _start(_with_hosts, free_port(), count, function, timeout, args)


def launch(function, count, *args):
    """Starts `function(*args)` in `count` processes with the environment that torchrun gives them; like `start`. The
    store that they meet in is that of another process, as with torchrun."""
    port = free_port()
    running = _start(_with_environment, port, count, function, args)
    pids = [process.pid for process, _ in running]
    multiprocessing.get_context("fork").Process(target=_serve, args=(port, pids), daemon=True).start()
    return running


def _serve(port, pids):
    store = torch.distributed.TCPStore("localhost", port, None, True, wait_for_workers=False)
    while any(map(alive, pids)):
        time.sleep(0.1)
    del store


def alive(pid):
    """Whether a process runs; one that ended and waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _start(call, port, count, *given):
    context, running = multiprocessing.get_context("fork"), []
    for index in range(count):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(send, call, index, count, port, *given), daemon=True)
        process.start()
        send.close()
        running.append((process, receive))
    return running


def results(running):
    """What each function returned, or the exception that it raised; None of a process that was killed."""
    found = []
    for process, receive in running:
        try:
            found.append(receive.recv() if receive.poll(PATIENCE) else TimeoutError("no result"))
        except EOFError:
            found.append(None)
        process.join(10)
        process.kill()
    return found


def run(function, count, *args, timeout=20):
    return results(start(function, count, *args, timeout=timeout))


def _run(send, call, *given):
    torch.set_num_threads(1)
    try:
        result = call(*given)
    except Exception as error:
        traceback.print_exc()
        result = error
    send.send(result)


def _with_hosts(index, count, port, function, timeout, args):
    seconds = datetime.timedelta(seconds=timeout)
    hosts = over_tcp(index, count, "localhost", port, seconds) if count > 1 else Hosts()
    result = function(hosts, *args)
    hosts.close()
    return result


def _with_environment(index, count, port, function, args):
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost",
                   "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
    try:
        return function(*args)
    except SystemExit as error:
        return error
