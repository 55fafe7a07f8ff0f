"""Every shipped flagfile parses and resolves; the rows of table 2 train what the paper's table shows."""

import dataclasses
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from itit import config as config_lib
from itit import flags
from itit.tasks import TASKS
from itit.train_step import tasks
from tests.helpers.common import ROOT
from tools import table4

FOLDER = ROOT / "launch" / "flagfiles"
FILES = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.cfg"))}
VQGAN_FILES = [name for name in FILES if name.endswith("_vqgan.cfg")]  # tools.train_vqgan reads them

# arXiv:2310.03734, table 2: T2I, I2T, what stands under T2I2T and I2T2I, pairs, unpaired texts, unpaired pictures, FID,
# CIDEr.
TABLE_2 = """
1   yes no  no   no   CC3M       -     -      15.5 -
2   no  yes no   no   CC3M       -     -      -    19.0
3   yes yes no   no   CC3M       -     -      15.7 23.5
4   yes yes no   no   CC3M+WebLI -     -      14.2 20.7
5   yes yes T2T  no   CC3M       WebLI -      15.1 26.0
6   yes yes no   I2I  CC3M       -     WebLI  15.9 24.2
7   yes yes T2T  I2I  CC3M       WebLI WebLI  15.6 28.5
8   yes yes Half no   CC3M       WebLI -      14.8 27.6
9   yes yes no   Half CC3M       -     WebLI  14.7 24.8
10  yes yes Half Half CC3M       WebLI WebLI  14.5 30.5
11  yes yes Full no   CC3M       WebLI -      14.6 28.4
12  yes yes no   Full CC3M       -     WebLI  14.6 26.3
13  yes yes Full Full CC3M       CC3M  CC3M   15.4 24.4
14  yes yes Full Full CC3M       WebLI WebLI  14.3 31.1
"""
ROWS = [tuple(line.split()) for line in TABLE_2.strip().splitlines()]
V4 = {"mesh_fsdp": 1, "matmul_precision": "medium"}  # how it runs, not what is trained
TABLE_1 = {"B": ("221", "13.4", "32.1", "103.5"), "L": ("487", "12.0", "35.1", "116.4"),
           "H": ("868", "10.4", "38.2", "125.3")}  # fmt: skip


def read(path, monkeypatch):
    """The resolved Config of a flagfile, parsed where its user stands: in the root of the repository."""
    monkeypatch.chdir(ROOT)
    values = absl_flags.FlagValues()
    flags.define(flag_values=values)
    assert flags.parse(["main", f"--flagfile={path.relative_to(ROOT)}"], values) == ["main"]
    return flags.from_flags(flag_values=values).resolve()


def head(path):
    """The comment at the top, as one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line[1:].strip() for line in lines[: [line.startswith("#") for line in lines].index(False)])


def corpora(patterns):
    """The data sets that a pattern names, as the table writes them."""
    names = re.findall(r"gs://BUCKET/(cc3m|webli)[a-z_]*/\*\.tfrecord", patterns)
    assert len(names) == len([part for part in patterns.split(",") if part])
    return "+".join({"cc3m": "CC3M", "webli": "WebLI"}[name] for name in names) or "-"


def trained(config):
    """The marks of a row of the table, from what a step of this config does."""
    o, active = config.objective, tasks(config, 0)
    assert {"t2i2t", "t2t"} - set(active) and {"i2t2i", "i2i"} - set(active), "the table has one column for both"
    under_t2i2t = o.t2i2t.capitalize() if "t2i2t" in active else "T2T" if "t2t" in active else "no"
    under_i2t2i = o.i2t2i.capitalize() if "i2t2i" in active else "I2I" if "i2i" in active else "no"
    return tuple("yes" if task in active else "no" for task in ("t2i", "i2t")) + (under_t2i2t, under_i2t2i)


@pytest.mark.parametrize("name", FILES)
def test_it_says_what_it_is(name):
    assert head(FILES[name]), "no comment at its head"
    assert all(len(line) <= 120 for line in FILES[name].read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", sorted(set(FILES) - set(VQGAN_FILES)))
def test_it_parses_and_resolves(name, monkeypatch):
    config = read(FILES[name], monkeypatch)
    assert config == config.resolve()


@pytest.mark.parametrize("name", VQGAN_FILES)
def test_it_parses_for_the_image_tokenizer(name):
    """All that the command misses is its data: an unknown flag or a bad value would come first."""
    command = [sys.executable, "-m", "tools.train_vqgan", f"--flagfile={FILES[name].relative_to(ROOT)}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "--data must have a value" in ended.stderr, ended.stderr


def test_there_are_14_rows():
    assert [path.name for path in sorted((FOLDER / "table2").iterdir())] == [
        "common.cfg", *(f"row{number:02d}.cfg" for number in range(1, 15))
    ]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_table_2_trains_what_the_paper_shows(row, monkeypatch):
    number, *marks, paired, texts, images, fid, cider = row
    path = FOLDER / "table2" / f"row{int(number):02d}.cfg"
    config = read(path, monkeypatch)
    assert trained(config) == tuple(marks)
    assert (corpora(config.data.paired_data), corpora(config.data.text_data)) == (paired, texts)
    assert corpora(config.data.image_data) == images
    active = tasks(config, 0)
    assert sum(active.values()) == 2048
    # A quarter for each task of unpaired data, and the rest, shared evenly, for the pairs.
    pairs, unpaired = ([size for task, size in active.items() if (task in ("t2i", "i2t")) == side] for side in (1, 0))
    assert set(unpaired) <= {512} and len(set(pairs)) == 1
    assert (config.objective.i2t_i2i_weight > 0) == (number != "2")
    assert (config.objective.t2i_text_drop_prob > 0) == (number == "1")
    said = head(path)
    assert f"row {number}:" in said and f"--flagfile={path.relative_to(ROOT)} " in said
    assert f"FID {fid}, CIDEr {cider}." in said and "arXiv:2310.03734" in said


def test_rows_differ_in_nothing_else(monkeypatch):
    """Seen from the settings of the paper's table 3, which are the defaults, with cycles from the first step, on v4."""
    own = {"t2i_text_drop_prob", "i2t_i2i_weight", "t2i2t", "i2t2i", "paired_data", "image_data", "text_data"}
    own |= {f"{task}_batch" for task in TASKS}
    placeholders = {"eval_data", "vocabulary", "vqgan", "t5_weights"}
    expected = config_lib.replace(config_lib.Config(), t2i2t_warmup_steps=0, i2t2i_warmup_steps=0, **V4).resolve()
    assert expected.optim.num_steps == 500_000 and expected.model.preset == "B"
    for number in range(1, 15):
        config = read(FOLDER / "table2" / f"row{number:02d}.cfg", monkeypatch)
        for name, owner, field in config_lib.fields(config):
            if name not in own | placeholders:
                found = getattr(getattr(config, owner), field.name)
                assert found == getattr(getattr(expected, owner), field.name), f"row {number}: --{name}"
        assert all(getattr(config.data, name) for name in placeholders - {"t5_weights"}) and config.t5.weights


@pytest.mark.parametrize("number", range(1, 8))
def test_a_row_of_table_4_trains_what_the_paper_shows(number, monkeypatch):
    path = FOLDER / "table4" / f"row{number:02d}.cfg"
    config, (first, second, speed) = read(path, monkeypatch), table4.ROWS[number - 1]
    assert (config.objective.t2i2t, config.objective.i2t2i) == tuple({"no": "off"}.get(x, x) for x in (first, second))
    said = head(path)
    same = read(FOLDER / "table2" / f"row{int(re.search('table 2, row ([0-9]+)', said)[1]):02d}.cfg", monkeypatch)
    assert tasks(config, 0) == tasks(same, 0) and sum(tasks(config, 0).values()) == 2048
    assert config.model == same.model and config.objective == same.objective
    assert config.decode == dataclasses.replace(same.decode, synth_drop_masked=True)  # the one departure, for speed
    assert config.t5.size == "xxl" and not config.t5.weights and config.data.vqgan and not config.data.paired_data
    assert f"row {number}:" in said and f"{speed:.2f} steps/s" in said and "arXiv:2310.03734" in said
    assert f"--flagfile={path.relative_to(ROOT)} --topology=v4:8x8x4" in said


@pytest.mark.parametrize("preset", TABLE_1)
def test_table_1_is_row_14_trained_longer(preset, monkeypatch):
    path = FOLDER / f"itit_{preset}.cfg"
    row_14, config = read(FOLDER / "table2" / "row14.cfg", monkeypatch), read(path, monkeypatch)
    longer = dict(num_steps=1_500_000, t2i2t_warmup_steps=25_000, i2t2i_warmup_steps=25_000)
    sized = dataclasses.replace(row_14, model=config_lib.ModelConfig(preset=preset))
    expected = config_lib.replace(sized, **longer)
    assert config == expected.resolve()
    count, fid, zero_shot, fine_tuned = TABLE_1[preset]
    said = head(path)
    assert f"{count} M parameters" in said and f"--flagfile={path.relative_to(ROOT)} " in said
    assert f"FID {fid}, CIDEr {zero_shot} zero-shot, {fine_tuned} fine-tuned." in said


# arXiv:2310.03734, figures 4 and 5, table 5: what a flagfile is but for its data and warm-up: row of table 2, size.
CURVES = {f"figure4/{kind}_{count}": (row, "H") for kind, row in (("pairs", 3), ("unpaired", 14))
          for count in ("4M", "40M", "398M")}  # fmt: skip
CURVES |= {f"figure5/left_pairs_{count}": (3, "B") for count in ("1.2M", "12M", "120M", "398M")}
CURVES |= {f"figure5/left_unpaired_{count}": (14, "B") for count in ("12M", "120M", "398M")}
CURVES |= {f"figure5/right_{kind}_{share}": (row, "B") for kind, row in (("pairs", 3), ("unpaired", 14))
           for share in (10, 100)}  # fmt: skip
TABLE_5 = {0: (14.3, 31.1), 25: (14.1, 31.3), 50: (14.3, 31.3), 100: (14.6, 30.9), 200: (14.8, 30.5)}
CURVES |= {f"table5/warmup_{f'{thousands}K' if thousands else 0}": (14, "B") for thousands in TABLE_5}
SPEEDS = {
    3: (3.41, 16.20),
    14: (1.47, 4.67),
}  # steps/s on a v4-512: the paper's; launch/PREDICTIONS.md


def test_figures_4_and_5_and_table_5_are_all_there():
    folders = ("figure4", "figure5", "table5")
    assert {name.removesuffix(".cfg") for name in FILES if name.split("/")[0] in folders} == set(CURVES)


@pytest.mark.parametrize("name", CURVES)
def test_a_point_of_a_curve_trains_a_row_of_table_2(name, monkeypatch):
    row, preset = CURVES[name]
    path, same = FILES[f"{name}.cfg"], read(FOLDER / "table2" / f"row{row:02d}.cfg", monkeypatch)
    config, said = read(path, monkeypatch), head(path).replace(" \\ ", " ")
    warmup = config.objective.t2i2t_warmup_steps
    changed = {key: getattr(config.data, key) for key in ("paired_data", "image_data", "text_data")}
    expected = dataclasses.replace(same, model=config_lib.ModelConfig(preset=preset))
    expected = config_lib.replace(expected, **changed, t2i2t_warmup_steps=warmup, i2t2i_warmup_steps=warmup)
    assert config == expected.resolve()
    figure = re.fullmatch("(figure|table)([0-9]).*", name)
    assert said.startswith(f"{figure[1].capitalize()} {figure[2]}")
    assert f"arXiv:2310.03734, {figure[1]} {figure[2]}" in said
    assert f"--flagfile={path.relative_to(ROOT)} --workdir=gs://BUCKET/runs/{path.stem}" in said
    assert "Cost on a v4-512: " in said
    # Hours: before the cycles join, the steps are those of row 3.
    for number in (0, 1) if preset == "B" else ():
        hours = (warmup / SPEEDS[3][number] + (500_000 - warmup) / SPEEDS[row][number]) / 3600
        assert re.search(rf"\b{round(hours)}( hours)? at {('the paper', 'our')[number]}", said), hours


@pytest.mark.parametrize("thousands", TABLE_5)
def test_warm_ups_of_table_5(thousands, monkeypatch):
    path = FILES[f"table5/warmup_{f'{thousands}K' if thousands else 0}.cfg"]
    config = read(path, monkeypatch)
    assert config.objective.t2i2t_warmup_steps == config.objective.i2t2i_warmup_steps == 1000 * thousands
    fid, cider = TABLE_5[thousands]
    assert f"FID {fid}, CIDEr {cider}." in head(path)


@pytest.mark.parametrize("name", [name for name in CURVES if "unpaired" in name])
def test_totals_of_figure_5(name, monkeypatch):
    """Half of what is added is pictures and half texts, and the total is in the name."""
    config = read(FILES[f"{name}.cfg"], monkeypatch)
    patterns = config.data.paired_data, config.data.image_data, config.data.text_data
    counts = [re.search(r"_([0-9.]+)M/", pattern) for pattern in patterns]
    if name.startswith("figure5/left"):
        pairs, images, texts = (float(found[1]) for found in counts)
        assert images == texts and pairs + images + texts == pytest.approx(float(re.search("_([0-9]+)M", name)[1]))
    else:
        assert (counts[0] is not None) == name.startswith("figure4") and counts[1] is counts[2] is None
