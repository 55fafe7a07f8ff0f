"""Lines that cannot be written end nothing, and do not change the exit code; lines fit."""

import os
import random
import subprocess
import sys

import pytest

from itit.console import counted, listed
from tests.helpers.common import ROOT

CODE = """
import sys
from itit.console import say
for i in range(2000):
    say(f"line {i} " + "x" * 100)
    say("beside", sys.stderr)
sys.exit(7)
"""


def run(**streams):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, text=True, **pipes)


def test_lines_come_out_in_order():
    process = run()
    out, err = process.communicate(timeout=100)
    assert [line.split()[1] for line in out.splitlines()] == [str(i) for i in range(2000)]
    assert err == "beside\n" * 2000 and process.returncode == 7


def test_the_reader_goes_away():
    process = run()
    assert process.stdout.readline().startswith("line 0 ")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(100) == 7
    assert err.count("warning: stdout: Broken pipe") == 1 and err.count("beside") == 2000 and "Exception" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("names", [["stdout"], ["stderr"], ["stdout", "stderr"]])
def test_a_full_disk(names):
    with open("/dev/full", "w") as full:
        process = run(**dict.fromkeys(names, full))
        out, err = process.communicate(timeout=100)
    assert process.returncode == 7
    assert out is None or len(out.splitlines()) == 2000
    assert err is None or err.count("warning: stdout: No space left on device") == 1


def test_words_are_listed_within_80_columns_and_whole():
    words = [f"{'x' * random.randint(1, 30)}-{i} {random.random():.3f}" for i in range(random.randint(3, 40))]
    lines = listed(words).splitlines()
    assert all(len(line) <= 80 and line.startswith("    ") for line in lines)
    assert [word for line in lines for word in line.strip().split("  ")] == words
    assert all(len(a) + 2 + len(b.split("  ")[2]) > 80 for a, b in zip(lines, lines[1:], strict=False))  # filled


def test_one_thing_is_one_thing():
    assert [counted(n, "shard") for n in (0, 1, 2)] == ["0 shards", "1 shard", "2 shards"]
