"""The scripts of launch/ before they do anything: --help, and flags that are none. In a copy without an environment."""

import hashlib
import os
import shutil
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT

SOURCED = {"environment.sh", "tpu_options.sh"}
SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh") if path.name not in SOURCED)
TRAIN = ["quickstart.sh", "emoji.sh", "finetune.sh"]  # their arguments go to itit.train


@pytest.fixture
def copy(tmp_path):
    """The root of a copy of what the scripts read."""
    root = tmp_path / "copy"
    shutil.copytree(ROOT / "launch", root / "launch")
    for name in ("requirements.txt", "setup.py"):
        shutil.copy(ROOT / name, root)
    return root


def call(root, name, *arguments):
    environment = os.environ | {"RUN": str(root / "run"), "PYTHONPATH": str(ROOT), "PYTHON": "false"}
    return subprocess.run(
        ["bash", str(root / "launch" / name), *arguments], cwd=root.parent, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip


def listed(root):
    return sorted(str(path) for path in root.rglob("*") if "__pycache__" not in str(path))


def with_environment(root):
    """Makes the copy take this Python for an environment in which all is installed."""
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    read = b"".join((root / name).read_bytes() for name in ("requirements.txt", "setup.py"))
    (root / ".venv" / "installed").write_text(hashlib.sha256(read).hexdigest() + "\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_says_what_a_script_does_and_starts_nothing(copy, name):
    before = listed(copy)
    done = call(copy, name, "--help")
    assert done.returncode == 0 and not done.stderr and listed(copy) == before
    head = (ROOT / "launch" / name).read_text().splitlines()[1].removeprefix("# ")
    assert head in done.stdout.splitlines() or done.stdout.startswith(f"usage: bash launch/{name} ")
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize("name", TRAIN)
def test_wrong_flags_are_refused_before_the_first_step(copy, name):
    with_environment(copy)
    before = listed(copy)
    for wrong, parts in (
        ("--num_step=3", ["num_step", "num_steps"]),
        ("--num_steps=0", ["--num_steps=0: must be in "]),
        ("--num_decode_steps=65", ["--num_decode_steps=65: must be in [1, num_image_tokens=64]"]),
    ):
        done = call(copy, name, "--seed=1", wrong)
        assert done.returncode == 2 and not done.stdout and listed(copy) == before
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        assert all(part in done.stderr for part in parts), done.stderr


@pytest.mark.parametrize("name", TRAIN)
def test_right_flags_begin_every_step(copy, name, tmp_path):
    """Up to the commands themselves, which write down their names here."""
    with_environment(copy)
    called = tmp_path / "called"
    python = copy / ".venv" / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then echo "$2" >> "{called}"; else exec "{sys.executable}" "$@"; fi\n'
    )
    done = call(copy, name, "--seed=1")
    assert done.returncode == 0, done.stderr
    assert "itit.train" in called.read_text().split() and not done.stderr


def test_names_of_flagfiles_that_are_none_are_refused_before_the_first_step(copy):
    with_environment(copy)
    (copy / ".venv" / "installed").rename(copy / ".venv" / "installed-preflight")
    done = call(copy, "preflight.sh", "itit_L", "itit_Q")
    assert done.returncode == 2 and done.stderr == "error: no launch/flagfiles/itit_Q.cfg\n"
    assert not (copy / "run").exists()
