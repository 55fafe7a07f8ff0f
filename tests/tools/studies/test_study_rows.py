"""study_rows: means and spreads, the paper's order against ours, and how many times fewer pairs, by hand."""

import math

import pytest

from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import study_rows


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = studies.read(tmp_path)
    alone, few, _ = study.experiments
    lines = [studies.line(study, alone, 0, 0.2, 0.1), studies.line(study, alone, 1, 0.4, 0.1),
             studies.line(study, few, 5, 0.6, 0.3)]  # fmt: skip
    return study_rows.rows_of(study, {line["digest"]: line for line in lines})


def test_values_and_spread(rows):
    assert [len(row.lines) for row in rows] == [2, 1, 0]
    for split in ("seen", "unpaired", "never", "all"):
        assert rows[0].values(study_rows.exact("captions", split)) == pytest.approx([0.2, 0.4])
    assert study_rows.spread(rows[0].values(study_rows.exact("captions", "never"))) == pytest.approx((0.3, 0.2, 0.4, 2))
    assert study_rows.spread(rows[2].values(study_rows.cider)) is None
    assert rows[1].values(study_rows.by_objects("pictures", "seen", 2)) == [0.15]
    assert rows[1].values(study_rows.by_objects("pictures", "seen", 4)) == []
    assert rows[1].values(study_rows.by_attribute("captions", "colour")) == pytest.approx([0.6])
    assert rows[1].values(study_rows.intact("text", 3)) == pytest.approx([0.4])
    assert rows[1].values(study_rows.intact("text", 5)) == []
    assert rows[1].values(study_rows.cider) == pytest.approx([60])


def test_agreement():
    paper = {"a": 3.0, "b": 2.0, "c": 2.0, "d": 1.0, "e": 9.0}
    assert study_rows.agreement(paper, {"a": 0.9, "b": 0.1, "c": 0.5, "d": 0.3}) == (4, 5)  # not b above d; b = c
    assert study_rows.agreement(paper, {}) == (0, 0)


def test_saved():
    base = [(10, 0.1), (100, 0.5), (1000, 0.9)]
    found = study_rows.saved(base, [(10, 0.05), (20, 0.5), (30, 0.7), (100, 0.95)])
    assert found == [(10, "at most", 1), (20, "", pytest.approx(5.0)), (30, "", pytest.approx(math.sqrt(1e5) / 30)),
                     (100, "at least", 10)]  # fmt: skip
    assert study_rows.saved(base, base) == [(x, "", pytest.approx(1)) for x, _ in base]
    dip = [(10, 0.1), (100, 0.5), (1000, 0.4), (10000, 0.9)]
    assert study_rows.saved(dip, [(10, 0.45)])[0][2] < 10  # the first time that it gets there
