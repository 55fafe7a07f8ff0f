"""tools.studies.processes: locks that outlive a killed owner, processes that end with it, and what a log says last."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.common import ROOT
from tools.studies import processes

# Starts a process that sleeps, says its number, and waits.
OWNER = """
import sys, time
from tools.studies import processes
processes.PYTHON = (sys.executable, "-c", "import time; time.sleep(600)")
with processes.locked(sys.argv[1]) as lock:
    print(processes.start("x", [], sys.argv[1] + ".log", 1, lock).pid, flush=True)
    time.sleep(600)
"""


def test_a_lock_is_held_once(tmp_path):
    path = str(tmp_path / "new" / "lock")
    with processes.locked(path) as first, processes.locked(path) as second:
        assert first is not None and second is None
    with processes.locked(path) as third:
        assert third is not None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent has ended")
def test_a_killed_owner_takes_its_processes_along(tmp_path):
    path = str(tmp_path / "lock")
    owner = subprocess.Popen([sys.executable, "-c", OWNER, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    with processes.locked(path) as lock:
        assert lock is None
    os.kill(child, 0)
    owner.kill()
    owner.wait()
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with processes.locked(path) as lock:  # free once both have ended
            if lock is not None:
                break
        time.sleep(0.05)
    assert lock is not None


def test_start_and_stop(tmp_path, monkeypatch):
    code = "import os, sys, time; print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(600)"
    monkeypatch.setattr(processes, "PYTHON", (sys.executable, "-c", code))
    log = str(tmp_path / "log.txt")
    with processes.locked(str(tmp_path / "lock")) as lock:
        process = processes.start("a.module", ["--b=1"], log, 3, lock)
        while len(processes.tail(log).splitlines()) < 2:
            time.sleep(0.02)
        processes.stop([process])
    assert process.returncode == -signal.SIGTERM
    assert processes.tail(log).decode().splitlines() == ["$ python -m a.module --b=1", "['a.module', '--b=1'] 3"]
    assert processes.last_line(log).endswith(" 3")


def test_one_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    monkeypatch.setattr(processes, "PYTHON", (sys.executable, "-c", code))
    monkeypatch.setattr(processes, "PATIENCE", 0.2)
    log = str(tmp_path / "log.txt")
    with processes.locked(str(tmp_path / "lock")) as lock:
        process = processes.start("m", [], log, 1, lock)
        while b"deaf" not in processes.tail(log):
            time.sleep(0.02)
        processes.stop([process])
    assert process.returncode == -signal.SIGKILL


def test_the_end_of_a_log(tmp_path):
    path = tmp_path / "log"
    assert processes.tail(str(path)) == b"" and processes.last_line(str(path)) == "(nothing said)"
    path.write_bytes(b"a\n" * 20000 + b"the end\n \n")
    assert len(processes.tail(str(path), 100)) == 100 and processes.last_line(str(path)) == "the end"
    assert processes.cores() >= 1
