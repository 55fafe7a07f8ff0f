"""Flags: every setting is one flag, a flagfile parses back to an equal Config, mistakes end in one line."""

import dataclasses
import os
import random
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from itit import config as config_lib
from itit import flagfiles, flags
from tests.helpers.common import ROOT

MAIN = """
from absl import flags as own
from itit import flags
own.DEFINE_float("share", 0.5, "A flag of the tool's own.")
flags.define()
def main(argv):
    config = flags.from_flags()
    if config.train.workdir == "ctrl-c":
        raise KeyboardInterrupt
    if config.train.workdir.startswith("raise "):
        raise RuntimeError(config.train.workdir)
    if config.train.workdir:
        open(config.train.workdir)
    print(config.model.preset, config.optim.num_steps)
flags.run_main(main)
"""


def parse(*arguments, settings=None):
    values = absl_flags.FlagValues()
    flags.define(settings, values)
    assert flags.parse(["main", *arguments], values) == ["main"]
    found = flags.from_flags(settings, values)
    return found if settings else found.resolve()


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
    )


def random_config(rng):
    """A Config that resolves, with every kind of setting changed at random."""
    values = {}
    for name, _, field in config_lib.fields(config_lib.Config()):
        if name in ("t2i2t", "i2t2i"):
            values[name] = rng.choice(["half", "full"])
        elif field.metadata["choices"]:
            values[name] = rng.choice(field.metadata["choices"])
        elif field.type is bool and name not in ("image_decoder_sees_text", "overwrite_kept_masked"):
            values[name] = rng.random() < 0.5
        elif field.type is float and name.endswith("_weight"):
            values[name] = rng.choice([0.0, rng.random() * 10 ** rng.uniform(-12, 3)])
        elif field.type is str:
            values[name] = rng.choice(["", "gs://bucket/a*, b", "# no comment", "ä=b --flag=1", ' "quoted'])
    values["learning_rate"] = rng.random()
    values["num_steps"] = rng.randrange(5000, 10**12)
    values["sample_every"] = rng.choice([0, 7])
    values["synth_decode_steps"] = rng.choice([None, 3])
    values["t5_dim"] = rng.choice([None, 12])
    values["eval_every"] = 3
    values["keep_best"] = values["keep_best"] if values["vocabulary"] else ""
    values["eval_scenes"] = bool(values["vocabulary"] and values["vqgan"])  # what keep_best may ask for
    if values["keep_best"].endswith("_exact") and not values["eval_scenes"]:
        values["keep_best"] = ""
    return config_lib.replace(config_lib.Config(), **values).resolve()


def test_every_setting_is_a_flag_with_its_default():
    assert parse() == config_lib.Config().resolve()


def test_what_nobody_gave_is_left_open():
    values = absl_flags.FlagValues()
    flags.define(flag_values=values)
    flags.parse(["main", "--codebook_size=77"], values)
    assert flags.from_flags(flag_values=values) == config_lib.replace(config_lib.Config(), codebook_size=77)


def test_flagfile_parses_back_to_an_equal_config(tmp_path):
    rng = random.Random()
    for _ in range(20):
        config = random_config(rng)
        path = tmp_path / "flags.cfg"
        path.write_text(flags.to_flagfile(config), encoding="utf-8")
        assert parse(f"--flagfile={path}") == config


def test_a_flagfile_alone_is_read(tmp_path):
    for _ in range(5):
        config = random_config(random.Random())
        (tmp_path / "resolved.cfg").write_text(flags.to_flagfile(config), encoding="utf-8")
        assert flags.from_flagfile(str(tmp_path / "resolved.cfg")) == config
    (tmp_path / "short.cfg").write_text("--preset=nano\n# a comment\n--num_steps=7000\n")
    short = flags.from_flagfile(str(tmp_path / "short.cfg"))
    assert short == config_lib.replace(config_lib.Config(), preset="nano", num_steps=7000).resolve()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["no such flagfile"]),
        ("--num_step=1", ["num_step"]),
        ("--preset=tinny", ["--preset=tinny", "'tiny'"]),
        ("--num_steps=0", ["--num_steps=0", "in [1, "]),
    ],
)
def test_a_bad_flagfile_is_named(tmp_path, text, parts):
    path = tmp_path / "bad.cfg"
    if text:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        flags.from_flagfile(str(path))
    assert all(part in str(error.value) for part in parts)
    assert "bad.cfg" in str(error.value)


def test_a_section_alone_can_be_the_settings():
    vqgan = parse("--channel_multipliers=1,2,3", "--pixel_low=-1", settings=config_lib.VqganConfig())
    assert vqgan == config_lib.VqganConfig(channel_multipliers=(1, 2, 3), pixel_low=-1.0)
    lines = [line for line in flags.to_flagfile(vqgan).splitlines() if line.startswith("--")]
    assert parse(*lines, settings=config_lib.VqganConfig()) == vqgan
    assert len(lines) == len(dataclasses.fields(vqgan))


def test_the_last_flag_wins(tmp_path):
    path = tmp_path / "flags.cfg"
    path.write_text("--preset=tiny\n--num_steps=7000\n")
    config = parse("--num_steps=6000", f"--flagfile={path}", "--preset=nano")
    assert (config.model.preset, config.optim.num_steps) == ("nano", 7000)


def test_a_flagfile_names_others_beside_it(tmp_path, monkeypatch):
    """Wherever the command is typed, and in the order of the lines."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a" / "top.cfg").write_text("--num_steps=7000\n--flagfile=b/inner.cfg\n  # a comment\n--preset=tiny\n")
    (tmp_path / "a" / "b" / "inner.cfg").write_bytes(b"\xef\xbb\xbf--num_steps=8000\r\n\r\n--flagfile=../base.cfg\r\n")
    (tmp_path / "a" / "base.cfg").write_text(f"// a comment\n--flagfile={tmp_path}/whole.cfg\n--preset=nano\n")
    (tmp_path / "whole.cfg").write_text("--seed=5")
    (tmp_path / "elsewhere" / "base.cfg").write_text("--seed=6")
    for folder, path in (("elsewhere", "../a/top.cfg"), (".", "a/top.cfg"), ("a", "top.cfg")):
        monkeypatch.chdir(tmp_path / folder)
        for config in (parse(f"--flagfile={path}"), parse("--flagfile", path), flags.from_flagfile(path)):
            assert (config.optim.num_steps, config.model.preset, config.train.seed) == (8000, "tiny", 5)
    assert flagfiles.expand(["x", "--", "--flagfile=absent"]) == ["x", "--", "--flagfile=absent"]


def test_the_flagfile_that_a_value_stands_in_is_known(tmp_path, monkeypatch):
    """That of the last one; of what the command line says last, none."""
    inner, outer = tmp_path / "inner.cfg", tmp_path / "outer.cfg"
    inner.write_text("--seed=3\n--num_steps=9\n--norandom_flip\n--preset=B\n")
    outer.write_text("--flagfile=inner.cfg\n--num_steps=8\n")
    line = [
        "--seed=2",
        f"--flagfile={outer}",
        "--preset=L",
        "--flagfile",
        str(inner),
        "--preset=H",
        "word",
        "--",
        "--x",
    ]
    assert flagfiles.places(line) == {"seed": str(inner), "num_steps": str(inner), "norandom_flip": str(inner)}
    monkeypatch.setattr(sys, "argv", ["main", *line[:3]])
    assert flags.places() == {"seed": str(inner), "num_steps": str(outer), "norandom_flip": str(inner)}


def test_a_flagfile_that_names_what_it_cannot_is_refused(tmp_path):
    path = tmp_path / "bad.cfg"
    for text, message in (
        (b"--flagfile=absent.cfg", f"^{tmp_path}/absent.cfg: no such flagfile: {path} names it, and .* beside it$"),
        (b"--flagfile=bad.cfg", "^.*/bad.cfg: leads through 20 flagfiles to .*: does one name itself"),
        (b"--seed=\xff", "^.*/bad.cfg: not UTF-8 at byte 7$"),
        (b"--flagfile=s3://x/y", "s3://x/y: must be a local path or gs://"),
    ):
        path.write_bytes(text)
        for read in (lambda: parse(f"--flagfile={path}"), lambda: flags.from_flagfile(str(path))):
            with pytest.raises(ValueError, match=message):
                read()
    with pytest.raises(ValueError, match="^--flagfile: must name a file$"):
        parse("--seed=1", "--flagfile")


def test_text_that_no_flagfile_holds_is_refused():
    for text in ("a\nb", "a ", "a\u2028b"):
        with pytest.raises(ValueError, match="--workdir"):
            flags.to_flagfile(config_lib.replace(config_lib.Config(), workdir=text))


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--learning_rat=1", ["learning_rat", "learning_rate"]),
        ("--preset=tinny", ["--preset=tinny", "'tiny'", "nano"]),
        ("--num_steps=many", ["--num_steps=many"]),
        ("--learning_rate=nan", ["--learning_rate=nan", "finite"]),
        ("--share=-inf", ["--share=-inf", "finite"]),
        ("--num_steps=0", ["--num_steps=0", "in [1, "]),
        ("--flagfile=absent.cfg", ["absent.cfg"]),
        ("--workdir=absent", ["absent: No such file"]),
        ("quick.cfg", ["'quick.cfg'", "--name=value"]),
    ],
)
def test_a_mistake_ends_in_one_line(argument, parts):
    done = run(argument)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_frame_of_a_main():
    good = run("--preset=nano", "--num_steps=9000")
    assert (good.returncode, good.stdout, good.stderr) == (0, "nano 9000\n", "")
    stopped = run("--workdir=ctrl-c")
    assert (stopped.returncode, stopped.stderr) == (130, "interrupted\n")
    shown = run("--workdir=absent", ITIT_TRACEBACK="1")
    assert shown.returncode == 2 and "Traceback" in shown.stderr
    listed = run("--num_step=1", "--help")
    assert listed.returncode == 0 and "Of this command:\n  --share=0.5  A flag of the tool's own.\n" in listed.stdout


def test_what_a_terminal_would_obey_comes_out_escaped(tmp_path):
    done = run(f"--workdir={tmp_path}/a\x1b[2J\u202eb\x07" + "c" * 5000)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and len(done.stderr) < 2100
    assert "a\\x1b[2J\\u202eb\\x07cc" in done.stderr and done.stderr[:-1].isprintable()


def test_the_first_word_is_taken_where_it_is_no_flag(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", "word", "--x=1", "other"])
    assert flags.take_word() == "word" and sys.argv == ["main", "--x=1", "other"]
    assert flags.take_word() == "" and len(sys.argv) == 3
    monkeypatch.setattr(sys, "argv", ["main"])
    assert flags.take_word() == ""


def test_more_than_the_memory_holds_is_one_line_and_a_bug_is_not():
    for said in ("CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: 9 bytes"):
        ended = run(f"--workdir=raise {said}")
        assert (ended.returncode, ended.stderr) == (2, f"error: raise {said}\n")
    ended = run("--workdir=raise shapes differ")
    assert ended.returncode == 1 and "Traceback" in ended.stderr
