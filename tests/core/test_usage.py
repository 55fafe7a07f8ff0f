"""--help of every command: at once, without what it does not need, grouped as the settings are, and exit code 0."""

import pathlib
import re
import subprocess
import sys
import types

import pytest

from itit import config as config_lib
from itit import flags, usage
from itit.config import Config
from tests.helpers.common import ROOT

COMMANDS = ["itit.train", *(f"tools.{path.stem}" for path in sorted((ROOT / "tools").glob("[!_]*.py")))]

# Runs a command as `python -m` does, and says what of others that has loaded.
TRACED = """
import atexit, runpy, sys
name, sys.argv, sys.orig_argv = sys.argv[1], ["-m", *sys.argv[2:]], [sys.executable, "-m", *sys.argv[1:]]

def others():
    return {module.partition(".")[0] for module, loaded in [*sys.modules.items()]
            if "site-packages" in (getattr(loaded, "__file__", None) or "")}

before = others()
atexit.register(lambda: print("LOADED", *(others() - before)))
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name):
    done = run("-c", TRACED, name, "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert set(loaded.split()) <= {"absl", "numpy"}
    path = ROOT / pathlib.Path(*name.split(".")).with_suffix(".py")
    assert f"python -m {name}" in text.split("\n\n")[0] and text.endswith("Flags of all modules: --helpfull\n")
    own = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', path.read_text())
    titles = [line for line in text.splitlines() if line.endswith(":") or ": " in line and line[0].isalpha()]
    assert not own or "Of this command:" in titles
    for flag in own:
        assert f"\n  --{flag}" in text or f"\n  --[no]{flag}" in text, flag


def test_help_of_training_is_grouped_as_the_settings_are():
    done = run("-m", "itit.train", "--num_steps=no number", "--help")
    assert done.returncode == 0 and not done.stderr
    parts = done.stdout.split("\n\n")
    first = next(part for part in parts if part.startswith("What is set first:"))
    assert [line.split("=")[0].split()[0] for line in first.splitlines() if line.startswith("  --")] == [
        "--flagfile", *(f"--{name}" for name in config_lib.FIRST)
    ]  # fmt: skip
    assert len(config_lib.FIRST) == 9
    groups = {}
    for name, owner, _ in config_lib.fields(Config()):
        groups.setdefault(owner, []).append(name)
    titled = {part.split(":")[0]: part for part in parts}
    assert [title for title in titled if title in groups] == [*groups]
    for owner, names in groups.items():
        lines = [line.split()[0] for line in titled[owner].splitlines() if line.startswith("  --")]
        found = [line.removeprefix("--").removeprefix("[no]").split("=")[0] for line in lines]
        assert found == names, owner
        assert " ".join(type(getattr(Config(), owner)).__doc__.split("\n\n")[0].split()) in " ".join(
            titled[owner].split()
        )
    whole = " ".join(done.stdout.split())
    assert "--preset=B Widths and depths. One of: nano, tiny, B, L, H." in whole
    assert "--[no]class_token (false) Add" in whole and usage.PAPER in whole


def test_arguments_of_a_tool_come_before_its_flags():
    assert "--karpathy_splits" in run("-m", "tools.prepare", "coco", "--help").stdout
    assert "--karpathy_splits" not in run("-m", "tools.prepare", "folder", "-h").stdout


def test_what_asks_for_help():
    assert usage.is_asked(["x", "--help"]) and usage.is_asked(["-h", "--", "x"])
    assert not usage.is_asked(["x", "--helpfull"]) and not usage.is_asked(["--", "--help"]) and not usage.is_asked([])


@pytest.mark.parametrize(
    "line",
    [["python", "script.py", "--help"], ["python", "-m", "pytest", "--help"], ["python", "-m", "itit.train"],
     ["python", "-m"], ["python", "-m", "tools.demo", "--", "--help"]],
)  # fmt: skip
def test_nothing_stands_in_for_what_others_need(monkeypatch, line):
    monkeypatch.setattr(sys, "orig_argv", line)
    monkeypatch.setattr(sys, "meta_path", before := list(sys.meta_path))
    usage.prepare()
    assert sys.meta_path == before


def test_empty_modules_bear_what_is_done_with_them_on_loading(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "tools.demo", "--help"])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    usage.prepare()
    code = """
import nowhere.inner.most as most
from nowhere.inner import Base, decorate
from typing import NamedTuple
class Mine(Base, most.Other):
    @decorate(1)
    def method(self): pass
    kind: Base | None = None
class Row(NamedTuple):
    value: most.Tensor | None
table = {most.key: Mine, "x": most.a.b(3).c}
"""
    found = {"__name__": "made_up"}
    try:
        exec(code, found)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "nowhere"]:
            del sys.modules[name]
    assert len(found["table"]) == 2 and found["Row"](1).value == 1


def test_defaults_are_shown_as_they_are_typed():
    def entry(default, boolean=False):
        return usage._entry(types.SimpleNamespace(name="x", default=default, boolean=boolean, help="Words."), 80)

    assert [entry(value) for value in (None, "", "a", 0, (1, 2), ["b", "c"])] == [
        "  --x  Words.", "  --x  Words.", "  --x=a  Words.", "  --x=0  Words.", "  --x=1,2  Words.", "  --x=b,c  Words."
    ]  # fmt: skip
    assert entry(True, True) == "  --[no]x (true)  Words." and entry(None, True) == "  --[no]x  Words."
    assert callable(flags.usage_text)
