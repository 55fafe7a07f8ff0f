"""The watchdog, in processes that hang: in Python, in C with the interpreter's lock held, and for a stopped worker."""

import os
import signal
import subprocess
import sys
import time

import pytest

from itit.training.watchdog import Watchdog
from tests.helpers.common import ROOT

HANG = """
import ctypes, sys, threading, time
from itit.training.watchdog import Watchdog

watchdog = Watchdog(20, 1.5, 2)
for step in range(2 + 3 * 2):
    with watchdog.step("t2i"):
        time.sleep(0.001)
{before}
print("hangs", flush=True)
with watchdog.step("{kind}"):
    {hang}
print("went on", flush=True)
"""
IN_PYTHON, IN_C = "threading.Event().wait(600)", "ctypes.PyDLL(None).sleep(600)"


def hang(hang, before="", kind="t2i"):
    code = HANG.format(hang=hang, before=before, kind=kind)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip


@pytest.mark.parametrize("where", [IN_PYTHON, IN_C])
def test_a_step_that_hangs_ends_the_process_with_all_stacks(where):
    ended = hang(where, "threading.Thread(target=time.sleep, args=(600,)).start()")
    assert ended.returncode == 1
    assert ended.stdout == "hangs\n" and "Timeout" in ended.stderr
    assert ended.stderr.count("most recent call first") == 2 and 'File "<string>"' in ended.stderr


def test_first_steps_of_a_kind_and_what_is_between_steps_are_not_watched():
    ended = hang("time.sleep(2)", before="time.sleep(2)", kind="i2t")
    assert ended.returncode == 0 and ended.stdout == "hangs\nwent on\n" and "Timeout" not in ended.stderr


STOPPED = """
import subprocess, sys
from itit.training.watchdog import Watchdog

worker = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(worker.pid, flush=True)
watchdog = Watchdog(20, 1.0, 1)
for step in range(5):
    with watchdog.step(0):
        pass
with watchdog.step(0):
    worker.wait()  # as for a batch that a worker owes
"""


def test_a_stopped_worker_is_left():
    run = subprocess.Popen([sys.executable, "-c", STOPPED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    worker = int(run.stdout.readline())
    os.kill(worker, signal.SIGSTOP)
    try:
        _, said = run.communicate(timeout=300)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert run.returncode == 1 and "Timeout" in said and "in wait" in said


def test_the_limit_follows_the_median_of_whole_windows(monkeypatch):
    """One step of a window takes the time of all, as the one that reads results does."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(10, 7.0, 4)

    def steps(count, seconds, kind="a"):
        for _ in range(count):
            with watchdog.step(kind):
                now[0] += seconds
            now[0] += 1000  # a sample, a checkpoint

    steps(2, 500)  # compiles
    for number in range(3):
        assert watchdog.limit() is None
        steps(3, 0.01)
        steps(1, 1.97 + number)
    assert watchdog.limit() == pytest.approx(10 * 3.0)
    steps(2, 0.01)
    steps(2, 500, "b")  # compiles, too; its window begins anew
    steps(4, 0.25)
    assert watchdog.limit() == pytest.approx(10 * 2.5)
    for _ in range(99):
        steps(4, 0.01)
    assert watchdog.limit() == 7.0
    assert Watchdog(0, 7.0, 4).limit() is None
