"""The mains tools.generate, tools.caption and tools.cycle: from the line to the files."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from itit import sheets
from itit.sheets import Panel
from tests.helpers import finished_run
from tests.helpers.common import ROOT
from tools import caption, cycle, generate
from tools.generation import generation, inputs
from tools.spread import distribution


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir of a small finished run, folder with two pictures)."""
    folder = tmp_path_factory.mktemp("run")
    config, pairs = finished_run.of_scenes(folder)
    for i, (picture, _) in enumerate(pairs[:2]):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return config.train.workdir, folder


def call(tool, monkeypatch, **given):
    """Runs a main on flags; those not given have the defaults of the sections."""
    sections = generation.Loading(), generation.Drawing(), generation.Telling(), generation.Sharing()
    values = {name: value for section in sections for name, value in vars(section).items()}
    values |= {"prompt": [], "prompts": "", "num_prompts": 0, "pictures": "", "images": "", "num_pictures": 0,
               "num_shown": 64, "max_bad_records": 0, "num_turns": 3, "num_cycles": 8} | given  # fmt: skip
    monkeypatch.setattr(tool.flags, "FLAGS", types.SimpleNamespace(**values))
    parsed = types.SimpleNamespace(from_flags=lambda section: type(section)(**{n: values[n] for n in vars(section)}))
    monkeypatch.setattr(tool, "flags_lib", parsed)
    monkeypatch.setattr(distribution, "flags", parsed)
    tool.main([])


def test_generate_and_caption(run, tmp_path, monkeypatch, capsys):
    workdir, folder = run
    common = {"workdir": workdir, "backend": "cpu"}
    texts = ["a circle, red", "two", "three"]
    call(generate, monkeypatch, **common, prompt=texts, num_prompts=2, output=str(tmp_path / "g"), seed=4)
    assert f"{tmp_path}/g: 2 pictures" in capsys.readouterr().out
    model = generation.load(generation.Loading(workdir=workdir, backend="cpu"))
    made = model.generate(texts[:2], 4)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "g/pictures/000001.png")), np.asarray(made[1]))
    call(caption, monkeypatch, **common, pictures=str(folder / "*.png"), output=str(tmp_path / "c"), beam_size=2)
    results = json.loads((tmp_path / "c/captions.json").read_bytes())
    told = model.caption([str(folder / "0.png"), str(folder / "1.png")], beam_size=2)
    assert results == [{"image_id": i, "caption": text} for i, text in enumerate(told)]
    call(generate, monkeypatch, **common, prompt=texts, output=str(tmp_path / "s"), host_index=1, num_hosts=2,
         batch_size=2)  # fmt: skip
    assert "other hosts are not yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --prompt=TEXT"):
        call(generate, monkeypatch, **common, output=str(tmp_path / "x"))


def test_damaged_pictures_are_left_out_and_finished_work_stays(run, tmp_path, monkeypatch, capsys):
    workdir, folder = run
    data, pictures = [(folder / f"{n}.png").read_bytes() for n in (0, 1)], tmp_path / "in"
    pictures.mkdir()
    for name, value in zip(
        "abcdef", (data[0], b"", data[1], data[0], data[1][: len(data[1]) // 2], data[1]), strict=True
    ):
        (pictures / f"{name}.png").write_bytes(value)
    given = {"workdir": workdir, "backend": "cpu", "pictures": str(pictures), "batch_size": 1}

    def describe(limit, output="out"):
        call(caption, monkeypatch, **given, output=str(tmp_path / output), max_bad_records=limit)
        lines = (tmp_path / output / "captions.jsonl").read_text().splitlines()
        return {line["image_id"]: line["caption"] for line in map(json.loads, lines)}

    with pytest.raises(ValueError, match=r"b.png: not a picture.*so far: 1, above --max_bad_records=0"):
        describe(0)
    with pytest.raises(ValueError, match=r"e.png: picture does not decode.*so far: 2, above --max_bad_records=1"):
        describe(1)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").glob("*.json")}
    assert len(parts) == 4
    told = describe(2)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert list(told) == [f"{name}.png" for name in "acdf"] and told["a.png"] == told["d.png"]
    lines = (tmp_path / "out" / "damaged.txt").read_text().splitlines()
    assert [line[:5] for line in lines] == ["b.png", "e.png"]
    assert "captions of 6 pictures, but for 2 damaged" in capsys.readouterr().out
    assert describe(2, "again") == told and describe(2) == told
    given["batch_size"] = 4
    assert describe(2, "larger") == told
    with pytest.raises(ValueError, match="b.png: .*damaged pictures in all: 2, above"):
        describe(1, "larger")
    for name in "acdf":
        (pictures / f"{name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no usable pictures: 6 are damaged"):
        describe(9, "none")


@pytest.mark.parametrize("kind", ["text", "picture"])
def test_cycles_go_on_for_their_turns(run, tmp_path, monkeypatch, kind):
    workdir, folder = run
    texts = ["a circle", "a large blue square"]
    given = {"prompt": texts} if kind == "text" else {"pictures": str(folder / "*.png")}
    call(cycle, monkeypatch, workdir=workdir, backend="cpu", output=str(tmp_path), seed=2, **given)
    model = generation.load(generation.Loading(workdir=workdir, backend="cpu"))
    starts = texts if kind == "text" else [folder / "0.png", folder / "1.png"]
    expected = model.cycle(starts, 3, 2)
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [line["start"] for line in lines] == (texts if kind == "text" else ["0.png", "1.png"])
    for number, line in enumerate(lines):
        assert len(line["stages"]) == 4
        for stage, found in zip(expected, line["stages"], strict=True):
            if "text" in found:
                assert found["text"] == stage[number]
            else:
                assert np.array_equal(np.asarray(Image.open(tmp_path / found["file"])), np.asarray(stage[number]))
    page = np.asarray(Image.open(tmp_path / "cycle.png"))
    rows = [[Panel(None, s[i]) if isinstance(s[i], str) else Panel(s[i]) for s in expected] for i in range(2)]
    title = "The framed one is given, all else is made, each from the one before"
    assert np.array_equal(page, sheets.draw([sheets.Section(title, rows, joined=True)]))


def test_starts_are_of_one_kind():
    flag = types.SimpleNamespace(prompt=["a"], prompts="b.txt", pictures="", images="", num_cycles=2)
    with pytest.raises(ValueError, match="one of them"):
        cycle.read_starts(flag, 64)
    flag = types.SimpleNamespace(prompt=["a", "b", "c"], prompts="", pictures="", images="", num_cycles=2)
    assert cycle.read_starts(flag, 64) == (["a", "b"], ["a", "b"])
    assert generate.read_prompts(["a", "b"], "", 1) == [inputs.Prompt("a")]


@pytest.mark.parametrize("name", ["generate", "caption", "cycle", "demo"])
def test_a_mistake_is_one_line(name, tmp_path):
    given = {"generate": "--prompt=a", "caption": f"--pictures={ROOT}/launch/*.png", "cycle": "--prompt=a"}.get(name)
    output = [] if name == "demo" else [given, f"--output={tmp_path}"]
    command = [sys.executable, "-m", f"tools.{name}", "--backend=cpu", f"--model={tmp_path}/absent", *output]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: ") and "absent" in ended.stderr.splitlines()[-1]
