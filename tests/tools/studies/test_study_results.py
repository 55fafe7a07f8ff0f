"""tools.studies.study_results: lines that survive a kill and several writers, and what they say of the time."""

import concurrent.futures

import pytest

from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import study_results


def test_lines_come_back_and_half_a_line_goes(tmp_path):
    path = str(tmp_path / "deep" / "results.jsonl")
    assert study_results.read(path) == {}
    for number in range(3):
        study_results.append(path, {"digest": str(number % 2), "number": number})
    expected = {"0": {"digest": "0", "number": 2}, "1": {"digest": "1", "number": 1}}
    assert study_results.read(path) == expected
    with open(path, "a") as file:
        file.write('{"digest": "2", "num')
    assert study_results.read(path) == expected
    study_results.append(path, {"digest": "3"})
    assert study_results.read(path) == expected | {"3": {"digest": "3"}}
    with open(path, "a") as file:
        file.write("no line\n")
    with pytest.raises(ValueError, match="results.jsonl:5: no line of results"):
        study_results.read(path)


def test_several_writers(tmp_path):
    path = str(tmp_path / "results.jsonl")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: study_results.append(path, {"digest": str(i), "text": "x" * 5000}), range(60)))
    assert len(study_results.read(path)) == 60


def test_pace(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = studies.read(tmp_path)
    alone, few, more = study.experiments
    assert study_results.Pace({}).minutes(alone) is None
    lines = [studies.line(study, alone, 0, 0.5, 0.5, minutes=4.0), studies.line(study, alone, 1, 0.5, 0.5, minutes=6.0)]
    pace = study_results.Pace({line["digest"]: line for line in lines})
    assert pace.minutes(alone) == pytest.approx(5.0)
    assert pace.minutes(few) == pytest.approx(5.0)  # for want of a better one
    lines.append(studies.line(study, few, 5, 0.5, 0.5, minutes=20.0))
    pace = study_results.Pace({line["digest"]: line for line in lines})
    assert (pace.minutes(alone), pace.minutes(more)) == (pytest.approx(5.0), pytest.approx(20.0))
