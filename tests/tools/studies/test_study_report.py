"""study_report and study_plots: what the report says is what the lines hold, and it needs nothing else."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import study_plots, study_report, study_results

LINES = """
[study]
title = Few pairs
base = {base}
batch = 64
test = 40
plot = lines
x = pairs
log_x = yes
flags = --t2i_batch=25% --i2t_batch=25% --t2i2t_batch=25% --i2t2i_batch=25%

[on pairs alone]
pairs = 10, 100, 1000
seeds = 0, 1
flags = --t2i_batch=50% --i2t_batch=50% --t2i2t=off --t2i2t_batch=0 --i2t2i=off --i2t2i_batch=0

[with unpaired data]
pairs = 10, 100
seeds = 0, 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    studies.write(tmp_path)
    studies.write(tmp_path, LINES, "points")
    return tmp_path


def fill(folder, name, values):
    """Lines for the first experiments of a study: values(number, seed) -> shares of captions and pictures."""
    study = study_report.study_file.read(str(folder / f"{name}.study"))
    for number, experiment in enumerate(study.experiments):
        for seed in experiment.seeds:
            found = values(number, seed)
            if found:
                study_results.append(str(folder / "results.jsonl"), studies.line(study, experiment, seed, *found))
    return study


def rows_of(text, first):
    """The cells of the row that begins with `first`."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith(f"| {first}")]  # fmt: skip


def report(folder):
    study_report.write(str(folder), str(folder / "results.jsonl"))
    return (folder / "report.md").read_text()


def test_table_order_and_plots(folder):
    fill(folder, "some", lambda number, seed: [(0.2 + 0.1 * seed, 0.1), (0.6, 0.3), None][number])
    path = study_report.write(str(folder), str(folder / "results.jsonl"))
    assert path == str(folder / "report.md")
    text = (folder / "report.md").read_text()
    assert "## Pairs and more" in text and "Few pairs" not in text  # of which there are no lines
    assert "1 of 4 runs are not done yet." in text
    cells = rows_of(text, "**pairs alone**")[0]
    assert cells[:5] == ["**pairs alone**: both directions", "300 pairs", "2 of 2", "25.0 (20.0 to 30.0)",
                         "10.0 (10.0 to 10.0)"]  # fmt: skip
    assert cells[-4:] == ["25.0 (20.0 to 30.0)", "15.7", "23.5", "3.0 (3.0 to 3.0)"]
    cells = rows_of(text, "**both cycles, pairs 30**")[0]
    assert cells[1:5] == ["30 pairs, 20,000 images, 20,000 texts", "1 of 1", "60.0", "30.0"]
    assert rows_of(text, "**both cycles, pairs 300**")[0][2:5] == ["0 of 1", "-", "-"]
    assert "by CIDEr of the paper: both cycles, pairs 30 > pairs alone." in text
    assert "Here, never: both cycles, pairs 30 > pairs alone; 1 of 1 pairs" in text
    assert rows_of(text, "both cycles, pairs 30 ")[1][1:5] == ["60.0", "60.0", "60.0", "60.0"]  # by attribute
    assert rows_of(text, "both cycles, pairs 30 ")[0][1] == "60.0; 30.0; 0.0"  # by number of objects
    assert rows_of(text, "both cycles, pairs 30 ")[2][1:] == ["80.0", "60.0", "40.0", "20.0"] * 2
    assert "3 runs on cpu; commits abc." in text
    links = re.findall(r"!\[\w+\]\((.*)\)", text)
    assert links == [f"plots/some_{kind}.png" for kind in ("scores", "cycles", "curves")]
    for link in links:
        pixels = np.asarray(Image.open(folder / link))
        assert pixels.shape[0] > 300 and len(np.unique(pixels[..., :3].reshape(-1, 3), axis=0)) > 20


def test_lines_and_how_many_times_fewer(folder):
    shares = {0: 0.1, 1: 0.5, 2: 0.9, 3: 0.5, 4: 0.95}
    fill(folder, "points", lambda number, seed: (shares[number] + 0.04 * seed, shares[number]))
    text = report(folder)
    table = [row for row in rows_of(text, "captions") if row[1] == "seen"]
    assert table[0][:3] == ["captions", "seen", "10"] and table[0][3].startswith("10.0 (")
    low, high = map(float, re.search(r"\((.*) to (.*)\)", table[0][3]).groups())
    assert low < 10 < high
    assert table[1][2] == "100" and table[1][3].startswith("at least 10.0")
    assert [row[3] for row in rows_of(text, "pictures") if row[1] == "seen"] == ["10.0", "at least 10.0"]
    assert (folder / "plots" / "points_scores.png").exists()


def test_the_same_lines_make_the_same_report(folder):
    fill(folder, "some", lambda number, seed: (0.5, 0.5))
    study_report.write(str(folder), str(folder / "results.jsonl"))
    first = {path.name: path.read_bytes() for path in (*(folder / "plots").iterdir(), folder / "report.md")}
    study_report.write(str(folder), str(folder / "results.jsonl"))
    again = {path.name: path.read_bytes() for path in (*(folder / "plots").iterdir(), folder / "report.md")}
    assert first == again and len(first) == 4


def test_nothing_is_drawn_of_nothing(folder):
    text = report(folder)
    assert text == study_report.HEAD and not (folder / "plots").exists()
    assert set(study_plots.TITLES) == {"seen", "unpaired", "never"}
