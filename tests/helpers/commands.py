"""Commands as a reader types them, each in a fork of one process that has imported what all of them need."""

import contextlib
import multiprocessing
import os
import pathlib
import re
import runpy
import subprocess
import sys

PRELOAD = [
    "torch",
    "itit.pretrained",
    "itit.training.state",
    "itit.data.streams",
    "itit.backends.connect",
    "scipy.linalg",
]
PATIENCE = 300  # seconds for a command, on a machine that does other work
# What bash calls in the place of these programs: it prints name and arguments, a line each, and an empty line.
RECORD = "".join(f"{name}() {{ printf '%q\\n' {name} \"$@\"; echo; }}\n" for name in ("python", "bash", "tensorboard"))


def blocks(path, language):
    """The code of a Markdown file that is fenced as `language`, a string a block."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(block, folder):
    """The words of each python, bash or tensorboard that a shell would start for a block in a folder, its loops
    and variables done. Any other program of the block is an error."""
    done = subprocess.run(["bash", "-euc", RECORD + block], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    script = done.stdout.split("\n\n")
    return [[_unquoted(line) for line in lines.splitlines()] for lines in script if lines.strip()]


def _unquoted(word):
    return subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, text=True, check=True).stdout


def run(arguments, folder, environment=None):
    """Runs `python ARGUMENTS` (-m MODULE ...) in a folder, with what `environment` adds to that of the first command.
    Returns (exit status, what it printed)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    path = pathlib.Path(folder) / f"output-{os.getpid()}.txt"
    process = context.Process(target=_work, args=(arguments, str(folder), str(path), environment or {}))
    process.start()
    process.join(PATIENCE)
    process.kill()
    process.join()
    text = path.read_text(errors="replace")
    path.unlink()
    return process.exitcode, text


def _work(arguments, folder, path, environment):
    assert arguments[0] == "-m", arguments
    os.chdir(folder)
    os.environ.update(environment)
    with open(path, "wb", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    sys.argv[:] = arguments[1:]
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
