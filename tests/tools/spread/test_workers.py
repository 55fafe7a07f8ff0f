"""Tasks in several processes: order, how far they are read ahead, and what happens when a process ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.common import ROOT
from tests.helpers.processes import alive
from tools.spread import workers


def square(number):
    time.sleep(0.02 * (number % 3))
    if number == 99:
        raise ValueError("99 is too many")
    if number == 98:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), number**2


def test_results_come_in_order_from_several_processes():
    read = []
    found = workers.ordered(square, (read.append(n) or n for n in range(40)), 2)
    first = next(found)
    assert len(read) <= 1 + 2 * workers.AHEAD + 1, "tasks are read only as they are needed"
    results = [first, *found]
    assert [value for _, value in results] == [n**2 for n in range(40)]
    assert len({pid for pid, _ in results}) == 2 and os.getpid() not in {pid for pid, _ in results}
    assert {pid for pid, _ in workers.ordered(square, range(3), 1)} == {os.getpid()}


def test_errors_come_at_their_turn_and_a_killed_process_is_one_line():
    found = workers.ordered(square, [1, 2, 99, 3], 2)
    assert [next(found)[1], next(found)[1]] == [1, 4]
    with pytest.raises(ValueError, match="99 is too many"):
        next(found)
    with pytest.raises(ValueError, match="a worker process was killed"):
        list(workers.ordered(square, [1, 98, 2], 2))


SCRIPT = """
import os, time
from tools.spread import workers
from tests.tools.spread.test_workers import square

if __name__ == "__main__":
    found = workers.ordered(square, iter(int, 1), 2)
    print(*{next(found)[0] for _ in range(20)}, flush=True)
    time.sleep(600)
"""


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, env=environment)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert children and all(alive(pid) for pid in children)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in children)
