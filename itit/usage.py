"""`--help` of every command, at once: what to print, and how not to load what nobody needs for it.

A command's flags stand in its own file, below the imports of what it runs on, and torch alone takes seconds to load.
Where `python -m itit.train --help` or `python -m tools.NAME --help` is what was typed, empty modules therefore stand in
for those that are neither ours nor Python's own. Standard library only.
"""

import importlib.abc
import importlib.machinery
import shutil
import sys
import textwrap
import types

ASKED = {"--help", "-help", "-h", "-?"}
# Ours, what flags are made of, and what our modules compute with as they are loaded.
REAL = {"itit", "tools", "absl", "numpy", *sys.stdlib_module_names}
PAPER = 'P is the paper, arXiv:2310.03734; "unstated" marks what it leaves open.'


def is_asked(arguments):
    """Whether these arguments of a command ask for help; those after `--` do not."""
    words = list(arguments)
    return not ASKED.isdisjoint(words[: words.index("--")] if "--" in words else words)


def prepare():
    """Makes the imports that follow fast, where a command of ours was asked for help. Called by `itit` itself."""
    line = sys.orig_argv
    if "-m" not in line[:-1]:
        return
    name, *arguments = line[line.index("-m") + 1 :]
    if name.split(".")[0] in ("itit", "tools") and is_asked(arguments):
        sys.meta_path.insert(0, _Finder())


class _Nothing(type):
    """Classes that can be asked for anything, be called and be a base, and do nothing: what an empty module holds."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})

    def __call__(cls, *args, **kwargs):
        return cls


class _Module(types.ModuleType):
    """An empty module, and a package of such."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module under every name but those of REAL."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in REAL:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def page(about, groups):
    """The text to print.

    Args:
      about: docstring of the command.
      groups: list of (title, list of absl flags).
    """
    width = min(120, max(60, shutil.get_terminal_size((100, 24)).columns))
    parts = [about.strip()]
    for title, flags in groups:
        if flags:
            parts.append("\n".join([*textwrap.wrap(title, width), *(_entry(flag, width) for flag in flags)]))
    marked = any(" (P" in part or "(unstated)" in part for part in parts)
    return "\n\n".join([*parts, *[PAPER] * marked, "Flags of all modules: --helpfull"])


def _entry(flag, width):
    """One flag: its name, its default where it has one, and its help."""
    name, value = f"--{'[no]' * flag.boolean}{flag.name}", flag.default
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    value = "" if value is None else str(value).lower() if flag.boolean else str(value)
    text = f"{name}={value}" if value and not flag.boolean else f"{name} ({value})" if value else name
    return textwrap.fill(f"{text}  {flag.help}", width, initial_indent="  ", subsequent_indent="      ",
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
