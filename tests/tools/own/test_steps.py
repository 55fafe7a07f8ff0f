"""tools.own.steps: in turn, passed over where done, stopped by failures and signals, and never two at work."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT
from tools.own import steps

# In the place of `python -m`: a command that does as its module's name says, and writes the file that it is given.
STUB = """
import os, signal, sys, time
module, path = sys.argv[1:3]
if module == "fails":
    sys.exit(3)
if module == "saves":  # at a signal, as a training does
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
if module == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: None)
if module in ("saves", "sleeps", "deaf"):
    print("ready", flush=True)
    time.sleep(2 if module == "deaf" else 600)
with open(path, "a") as file:
    file.write(module)
"""
CALLER = """
import sys
from tools.own import steps
steps.PYTHON = (sys.executable, "-c", sys.argv[1])
def made(name):
    path = sys.argv[2] + "/" + name
    return steps.Command(name, (path,), lambda: __import__("os").path.exists(path))
with steps.alone(sys.argv[2]) as lock:
    sys.exit(steps.carry_out([("First", [made("quick")]), ("Second", map(made, sys.argv[3:]))], 2, lock))
"""


def start(folder, *modules):
    return subprocess.Popen([sys.executable, "-c", CALLER, STUB, str(folder), *modules], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err.splitlines()


def wait(process, line):
    while (said := process.stdout.readline()) and said.strip() != line:
        pass
    assert said, process.stderr.read()


def test_in_turn_and_once(tmp_path):
    code, out, err = ended(start(tmp_path, "a", "fails", "b"))
    assert (
        code == 3
        and out[0] == "1/2 First"
        and out[1] == f"$ python -m quick {tmp_path}/quick"
        and out[2] == "2/2 Second"
    )
    assert err == ["error: exit code 3 of fails; its lines say why. Step 2/2: the same command goes on from here"]
    assert not (tmp_path / "b").exists()
    (tmp_path / "fails").touch()  # somebody has mended it
    code, out, err = ended(start(tmp_path, "a", "fails", "b"))
    assert code == 0 and not err and [line for line in out if line.startswith("$")] == [f"$ python -m b {tmp_path}/b"]
    assert out[1] == "quick: done before" and (tmp_path / "a").read_text() == "a"


def test_a_signal_is_handed_on_once_and_ends_the_whole(tmp_path):
    """Also where the command does not mind it, since it is as good as done."""
    for module, number, code in (
        ("saves", signal.SIGTERM, 143),
        ("deaf", signal.SIGTERM, 143),
        ("sleeps", signal.SIGINT, 130),
    ):
        process = start(tmp_path, module, "next")
        wait(process, "ready")
        process.send_signal(number)
        found, out, err = ended(process)
        assert found == code and err[-1] == "interrupted. Step 2/2: the same command goes on from here"
        assert ("saved" in out) == (module == "saves") and not (tmp_path / "next").exists()
        assert (tmp_path / module).exists() == (module == "deaf")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent has ended")
def test_what_a_killed_call_leaves_is_waited_for(tmp_path):
    first = start(tmp_path, "saves")
    wait(first, "ready")
    first.kill()
    first.wait()
    second = start(tmp_path, "quick2")
    code, out, _ = ended(second)
    assert code == 0 and (tmp_path / "quick2").exists()


def test_two_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "PATIENCE", 1)
    message = "another process is at work in it; name another --output"
    with steps.alone(str(tmp_path)), pytest.raises(ValueError, match=message), steps.alone(str(tmp_path)):
        pass


def test_what_is_printed_can_be_typed():
    arguments = ("folder", "--input=/a b/[c], d's", *(f"--number{n}={n * 10**9}" for n in range(20)))
    lines = steps.typed(steps.Command("tools.x", arguments, None)).splitlines()
    assert len(lines) > 2 and max(map(len, lines)) <= 120 and lines[0].startswith("$ python -m tools.x folder ")
    assert all(line.endswith(" \\") for line in lines[:-1])
    script = 'python() { printf "%s\\0" "$@"; }\n' + "\n".join(lines).removeprefix("$ ")
    typed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    assert tuple(typed.split("\0")[:-1]) == ("-m", "tools.x", *arguments)
