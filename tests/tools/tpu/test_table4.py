"""tools.table4: the table beside the paper's, and what it touches of the document."""

import json
import subprocess
import sys

import pytest

from tests.helpers.common import ROOT
from tools import table4

GOOD = {"compiles": True, "predicted_steps_per_s": 4.0, "predicted_step_ms": 200.0, "predicted_ici_ms": 50.0,
        "hbm_gib_per_chip": 12.34, "hbm_gib_limit": 32, "mfu": 0.123, "chips": 256,
        "samples_per_step": 2048}  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows():
    head, rule, *rows = table4.table({1: GOOD, 7: GOOD | {"predicted_steps_per_s": 1.0}, 3: {"compiles": False}})
    assert len(rows) == 7 and {len(cells(line)) for line in (head, rule, *rows)} == {len(table4.HEAD)}
    assert cells(rows[0]) == [
        "1",
        "no",
        "no",
        "3.41",
        "1.00",
        "5.00",
        "4.00",
        "1.00",
        "200",
        "50",
        "12.3 of 32",
        "12 %",
    ]
    assert cells(rows[6])[:8] == ["7", "full", "full", "1.47", "0.43", "5.00", "1.00", "0.25"]
    assert cells(rows[2])[5:7] == ["does not compile", "-"]
    assert cells(rows[1])[5:] == ["-"] * 7


def test_other_flagfiles():
    head, rule, *rows = table4.table_of_others({"itit_L": GOOD, "itit_L-512": GOOD | {"chips": 512},
                                                "table2_row05": {**GOOD, "compiles": False}})  # fmt: skip
    assert {len(cells(line)) for line in (head, rule, *rows)} == {len(table4.HEAD_OF_OTHERS)}
    assert cells(rows[0]) == ["itit_L.cfg", "256", "2048", "5.00", "4.00", "200", "50", "12.3 of 32", "12 %"]
    assert cells(rows[1])[:2] == ["itit_L.cfg", "512"]
    assert cells(rows[2])[:4] == ["table2/row05.cfg", "256", "2048", "does not compile"]


def test_without_the_first_row_there_is_no_ratio():
    assert cells(table4.table({2: GOOD})[3])[7] == "-"


def test_only_what_is_between_the_marks_changes():
    begin, end = table4.marks("x")
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    filled = table4.fill(text, "x", ["new", "lines"], "README.md")
    assert filled == f"before\n{begin}\nnew\nlines\n{end}\nafter\n"
    assert table4.fill(filled, "x", ["new", "lines"], "README.md") == filled
    with pytest.raises(ValueError, match="README.md: no .*ends"):
        table4.fill(begin, "x", [], "README.md")
    with pytest.raises(ValueError, match="README.md: no .*begins"):
        table4.fill(end, "x", [], "README.md")


def test_the_document_has_the_marks():
    for name in (table4.TABLE_4, table4.OTHERS):
        table4.fill((ROOT / "launch" / "PREDICTIONS.md").read_text(encoding="utf-8"), name, [], "launch/PREDICTIONS.md")


def test_the_command(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("\n".join([*table4.marks(table4.TABLE_4), *table4.marks(table4.OTHERS)]))
    command = [sys.executable, "-m", "tools.table4", f"--run={tmp_path}", f"--readme={readme}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "no JSON of tools.preflight" in ended.stderr
    (tmp_path / "row01.json").write_text(json.dumps(GOOD))
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert "| 5.00 | 4.00 | 1.00 |" in readme.read_text() and ".cfg" not in readme.read_text()
    (tmp_path / "table2_row05.json").write_text(json.dumps(GOOD))
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert "| 5.00 | 4.00 | 1.00 |" in readme.read_text() and "| table2/row05.cfg | 256 |" in readme.read_text()
