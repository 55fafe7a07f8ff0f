"""Settings as absl flags: dataclass fields -> flags -> settings -> flagfile text, and the frame of every main.

A setting is declared once, in `config.py`; here it becomes the flag of the same name. With absl the last flag wins, so
`--flagfile` goes first and overrides after it. Library code and tests build `Config(...)` and never come here.
"""

import difflib
import math
import os
import re
import signal
import sys
import traceback
import types
import typing

from absl import app, flags

from itit import config as config_lib
from itit import flagfiles, usage
from itit.checks import check_ranges
from itit.console import say
from itit.untrusted import shown

MAX_LINE = 2000  # characters of an error
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|RESOURCE_EXHAUSTED")  # as allocators say it
FLAGFILE = types.SimpleNamespace(name="flagfile", boolean=False, default="", help="Plain text, a flag a line, in its "
                                 "place; flags after it win. Those of the repository: launch/flagfiles.")  # fmt: skip
_sections = {}  # name of a section whose flags are defined -> what it is


class _ChoiceParser(flags.ArgumentParser):
    """Takes one of `choices`; the error suggests the nearest one, which absl's own enum does not."""

    syntactic_help = "one of the listed values"

    def __init__(self, choices):
        self.choices = choices

    def parse(self, argument):
        if argument in self.choices:
            return argument
        near = difflib.get_close_matches(argument, self.choices, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"choose one of {', '.join(self.choices)}{hint}")


class _IntsParser(flags.ArgumentParser):
    """Takes whole numbers separated by commas, none at all, or the tuple itself (the default)."""

    syntactic_help = "whole numbers separated by commas"

    def parse(self, argument):
        if isinstance(argument, tuple) or not argument:
            return tuple(argument)
        try:
            return tuple(int(part) for part in argument.split(","))
        except ValueError:
            raise ValueError(f"expects {self.syntactic_help}") from None


class _FloatParser(flags.FloatParser):
    """Takes numbers; NaN and infinity, which pass most comparisons or none, are no setting."""

    def parse(self, argument):
        number = super().parse(argument)
        if not math.isfinite(number):
            raise ValueError("must be finite")
        return number


def _parser(field):
    """The absl parser for one dataclass field, from its choices or its annotation (`int`, `int | None`, ...)."""
    if field.metadata["choices"]:
        return _ChoiceParser(field.metadata["choices"])
    plain = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
    kind = field.type if typing.get_origin(field.type) is tuple or not plain else plain[0]
    parsers = {int: flags.IntegerParser, float: _FloatParser, str: flags.ArgumentParser}
    return parsers[kind]() if kind in parsers else _IntsParser()


def define(settings=None, flag_values=flags.FLAGS):
    """Defines one absl flag per setting of `settings`: a `Config` (the default) or one of its sections.

    Raises absl's DuplicateFlagError if two settings, or a setting and another flag, share a name.
    """
    settings = settings or config_lib.Config()
    for name, owner, field in config_lib.fields(settings):
        section = getattr(settings, owner) if owner else settings
        group = owner or type(section).__name__.removesuffix("Config").lower()
        _sections[group] = _about(section)
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")
        where = dict(flag_values=flag_values, module_name=group)
        if field.type is bool:
            flags.DEFINE_boolean(name, field.default, text, **where)
        else:
            flags.DEFINE(_parser(field), name, field.default, text, **where)


def _about(section):
    """The first lines of a section's docstring; of one that has none of its own, nothing."""
    doc = type(section).__doc__ or ""
    return "" if doc.startswith(f"{type(section).__name__}(") else " ".join(doc.split("\n\n")[0].split())


def usage_text(about, flag_values=flags.FLAGS):
    """What --help prints: the flags of a command's own, those of the whole Config that people set first, all sections.

    `about`: its docstring.
    """
    groups = flag_values.flags_by_module_dict()
    own = [flag for name, found in groups.items() if name not in _sections and not name.startswith("absl.")
           for flag in found]  # fmt: skip
    first = [FLAGFILE, *(flag_values[name] for name in config_lib.FIRST)] if "model" in groups else []
    sections = [(f"{name}: {text}" if text else f"{name}:", groups[name])
                for name, text in _sections.items() if name in groups]  # fmt: skip
    return usage.page(about, [("Of this command:", own), ("What is set first:", first), *sections])


def from_flags(settings=None, flag_values=flags.FLAGS):
    """The parsed flags as settings of the same kind as `settings`; what nobody gave and has no default is None: a
    `Config` is still to be settled (training/taken.py) or resolved.

    Raises ValueError with one line naming flag and allowed values.
    """
    template = settings or config_lib.Config()
    values = {name: flag_values[name].value for name, _, _ in config_lib.fields(template)}
    check_ranges(values)
    return config_lib.replace(template, **values)


def places():
    """Flag of the command line -> the flagfile that it stands in, see `flagfiles.places`."""
    return flagfiles.places(sys.argv[1:])


def from_flagfile(path, changes=()):
    """The resolved Config of a flagfile, such as the resolved.cfg of a run. Raises ValueError, one line.

    `changes`: further flags, "--name=value", which win.
    """
    flag_values, lines = flags.FlagValues(), flagfiles.read(path)
    define(flag_values=flag_values)
    try:
        parse([path, *lines, *changes], flag_values)
        return from_flags(flag_values=flag_values).resolve()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def texts(settings):
    """Flag -> the text of its value, of all that are not None.

    Raises ValueError for a text that a flagfile cannot hold (line breaks, spaces at its end).
    """
    found = {}
    for name, value in config_lib.values_of(settings).items():
        if isinstance(value, str) and (value.rstrip() != value or len(value.splitlines()) > 1):
            raise ValueError(f"--{name}={value!r}: must have no line break and no space at its end")
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        if value is not None:
            found[name] = str(value)
    return found


def to_flagfile(settings):
    """Flagfile text that parses back to equal settings; those that are None are left out. Raises as `texts` does."""
    lines = ["# Every setting of a run. Repeat it with --flagfile=THIS_FILE; flags after that one override it."]
    last_owner, values = None, texts(settings)
    for name, owner, _ in config_lib.fields(settings):
        if owner != last_owner:
            lines.append(f"\n# {owner}")
            last_owner = owner
        if name in values:
            lines.append(f"--{name}={values[name]}")
    return "\n".join(lines) + "\n"


def take_word():
    """Removes the first argument of the command and returns it; '' where there is none or it is a flag."""
    argv = sys.argv
    return argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else ""


def parse(argv, flag_values=flags.FLAGS):
    """Parses a command line, the program's name first, into `flag_values`; returns that name, in a list.

    Raises ValueError for a mistyped flag or value, words that are no flag, and what `flagfiles.expand` refuses.
    """
    arguments = flagfiles.expand(argv[1:])
    try:
        rest = flag_values([argv[0], *arguments])
    except flags.Error as error:
        raise ValueError(str(error).removeprefix("ERROR:: ")) from None
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    for name, value in flag_values.flag_values_dict().items():  # those of the tools' own, too
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name}={value}: must be finite")
    return rest


def _parse_line(argv):
    """`parse` of the command line; --help is printed, and ends the process."""
    if usage.is_asked(argv[1:]):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads only the beginning is told nothing
        print(usage_text(sys.modules["__main__"].__doc__ or ""))
        sys.exit(0)
    return parse(argv)


def run_main(main):
    """Runs `main(argv)` as a program and ends the process.

    A mistake of the user (ValueError, OSError, a bad flag, more than the memory holds) ends in one line `error: ...` on
    stderr and exit code 2, Ctrl-C in `interrupted` and 130. The environment variable ITIT_TRACEBACK=1 shows the stack
    before that line.
    """
    try:
        app.run(main, flags_parser=_parse_line)
    except (ValueError, OSError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        if os.environ.get("ITIT_TRACEBACK") == "1":
            traceback.print_exc()
        interrupted = isinstance(error, KeyboardInterrupt)
        say("interrupted" if interrupted else f"error: {_one_line(error)}", sys.stderr)
        sys.exit(130 if interrupted else 2)


def _one_line(error):
    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return shown(" ".join(text.split()), MAX_LINE) or type(error).__name__
