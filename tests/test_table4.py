"""tools.table4: the table beside the paper's, and what it touches of the README."""

import json
import subprocess
import sys

import pytest

from tests.common import ROOT
from tools import table4

GOOD = {"compiles": True, "predicted_steps_per_s": 4.0, "predicted_step_ms": 200.0, "predicted_ici_ms": 50.0,
        "hbm_gib_per_chip": 12.34, "hbm_gib_limit": 32, "mfu": 0.123}  # fmt: skip


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


def test_without_the_first_row_there_is_no_ratio():
    assert cells(table4.table({2: GOOD})[3])[7] == "-"


def test_only_what_is_between_the_marks_changes():
    text = f"before\n{table4.BEGIN}\nold\n{table4.END}\nafter\n"
    filled = table4.fill(text, ["new", "lines"], "README.md")
    assert filled == f"before\n{table4.BEGIN}\nnew\nlines\n{table4.END}\nafter\n"
    assert table4.fill(filled, ["new", "lines"], "README.md") == filled
    with pytest.raises(ValueError, match="README.md: no .*ends"):
        table4.fill(table4.BEGIN, [], "README.md")


def test_the_readme_has_the_marks():
    table4.fill((ROOT / "launch" / "README.md").read_text(encoding="utf-8"), [], "launch/README.md")


def test_the_command(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"{table4.BEGIN}\n{table4.END}\n")
    command = [sys.executable, "-m", "tools.table4", f"--run={tmp_path}", f"--readme={readme}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and "no row01.json to row07.json" in ended.stderr
    (tmp_path / "row01.json").write_text(json.dumps(GOOD))
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert "| 5.00 | 4.00 |" in readme.read_text()
