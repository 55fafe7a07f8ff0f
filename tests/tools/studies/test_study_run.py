"""study_run: runs side by side, failures beside others, what is done already, and data that come first."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import processes, study_results, study_run
from tools.studies.study_data import Command, Data

FAILING = "\n[fails]\nseeds = 4\nflags =\n    --t2i_batch=25% --i2t_batch=25% --t2i2t_batch=25% --i2t2i_batch=25%\n"\
          "    --dropout=0.3\n"  # fmt: skip

HOLDER = """
import sys, time
from tools.studies.processes import locked
with locked(sys.argv[1]):
    print(1, flush=True)
    time.sleep(2)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Commands of runs become those of `studies.STUB`. Returns the folder in which it counts."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "stub.py").write_text(studies.STUB)
    (tmp_path / "scores.json").write_text(json.dumps(studies.scores(0.5, 0.25)))
    (tmp_path / "count").mkdir()
    monkeypatch.setenv("COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("SCORES", str(tmp_path / "scores.json"))
    monkeypatch.setattr(processes, "PYTHON", (sys.executable, str(tmp_path / "stub.py")))
    monkeypatch.setattr(study_run, "POLL_SECONDS", 0.01)
    return tmp_path / "count"


def make_runs(study, folder):
    data = Data(study, str(folder / "data"))
    return [study_run.Run(study, *one, data, str(folder / "runs")) for one in study.runs]


def run(runs, folder, jobs):
    results = str(folder / "results.jsonl")
    pace = study_results.Pace(study_results.read(results))
    return study_run.run(runs, results, jobs, ["--backend=cpu"], pace, {"commit": "abc"}), study_results.read(results)


def test_all_but_those_that_fail(tmp_path, stand_in, monkeypatch, capfd):
    monkeypatch.setattr(study_run, "cores", lambda: 7)
    monkeypatch.setenv("TOGETHER", "1")
    study = studies.read(tmp_path, studies.TEXT + FAILING)
    failed, lines = run(make_runs(study, tmp_path), tmp_path, 2)
    assert [r.name for r in failed] == ["fails, seed 4"]
    expected = [study.digest(*one) for one in study.runs[:-1]]
    assert set(lines) == set(expected) and len(expected) == 4
    for (experiment, seed), digest in zip(study.runs, expected, strict=False):
        line = lines[digest]
        assert (line["study"], line["experiment"], line["seed"]) == ("some", experiment.name, seed)
        assert line["settings"] == experiment.settings and line["data"] == study.data(experiment)
        assert line["scores"] == studies.scores(0.5, 0.25)["scores"]
        assert line["curves"]["captions_exact"][0] == [200, 400]
        assert (line["step"], line["commit"], line["jobs"], line["threads"]) == (400, "abc", 2, 3)
        assert 0 <= line["minutes"] < 1
    at_work = [line.split() for line in (stand_in / "most").read_text().splitlines()]
    assert {threads for *_, threads in at_work} == {"3"} and max(int(count) for count, *_ in at_work) == 2
    said = capfd.readouterr().err
    assert f"FAILED: fails, seed 4: exit code 2: error: the loss is no number; log: {failed[0].log}" in said
    assert "done: pairs alone, seed 0: captions and pictures right: seen 50%, 25%; unpaired" in said
    log = pathlib.Path(failed[0].log).read_text()
    assert "--dropout=0.3" in log and "--seed=4" in log and f"--workdir={failed[0].folder}" in log
    assert "--backend=cpu" in log and f"--flagfile={study.base}" in log


def test_what_another_process_has_done_or_does(tmp_path, stand_in):
    study = studies.read(tmp_path)
    runs, results = make_runs(study, tmp_path), str(tmp_path / "results.jsonl")
    study_results.append(results, studies.line(study, *study.runs[0], 0.9, 0.9))  # meanwhile, by another one
    held = os.path.join(runs[1].folder, "lock")
    other = subprocess.Popen([sys.executable, "-c", HOLDER, held], cwd=ROOT, stdout=subprocess.PIPE)
    other.stdout.readline()
    began = time.monotonic()
    failed, lines = run(runs, tmp_path, 4)
    assert not failed and len(lines) == 4 and time.monotonic() - began > 1
    assert not os.path.exists(runs[0].log) and lines[runs[0].digest]["scores"]["seen"]["captions"]["exact"] == 0.9
    assert os.path.exists(runs[1].log)
    other.wait()


def test_a_run_goes_on_where_it_was(tmp_path, stand_in, monkeypatch):
    """After training, only the scores are wanted; minutes of both calls count."""
    study = studies.read(tmp_path)
    runs = make_runs(study, tmp_path)[:1]
    os.makedirs(runs[0].folder)
    for name, text in (("trained", ""), ("minutes", "12.5"), ("log.txt", "step 400/400 | 1 steps/s\n")):
        with open(os.path.join(runs[0].folder, name), "w") as file:
            file.write(text)
    _, lines = run(make_runs(study, tmp_path)[:1], tmp_path, 1)
    assert 12.5 <= lines[runs[0].digest]["minutes"] < 13.5
    assert "itit.train" not in (stand_in / "most").read_text()


def test_nothing_is_left_behind(tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("SECONDS_A_STEP", "30")
    runs = make_runs(studies.read(tmp_path), tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study_run, "left", lambda *_: interrupt() if runs[0].steps else "unknown")
    with pytest.raises(KeyboardInterrupt):
        run(runs, tmp_path, 2)
    assert {r.state for r in runs} == {"waits"} and runs[0].steps == 100
    with processes.locked(os.path.join(runs[0].folder, "lock")) as lock:
        assert lock is not None


def test_time_left(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = studies.read(tmp_path)
    runs = make_runs(study, tmp_path)
    assert study_run.left(runs, 2, study_results.Pace({})) == "unknown"
    lines = [studies.line(study, *study.runs[0], 0.5, 0.5, minutes=30.0)]
    pace = study_results.Pace({line["digest"]: line for line in lines})
    assert study_run.left(runs, 2, pace) == "1:00"
    runs[0].state = "done"
    assert study_run.left(runs, 1, pace) == "1:30" and study_run.left(runs, 9, pace) == "0:30"


def test_data_come_first(tmp_path, stand_in, monkeypatch):
    monkeypatch.setattr(Data, "cut", lambda self, runs: None)
    code = "import sys; open(sys.argv[2], 'x').close()"
    monkeypatch.setattr(processes, "PYTHON", (sys.executable, "-c", code))
    commands = [Command("one", (str(tmp_path / "a"),), str(tmp_path / "a")),
                Command("two", (str(tmp_path / "b"),), str(tmp_path / "c"))]  # fmt: skip
    monkeypatch.setattr(Data, "commands", lambda self, runs: commands)
    study, log = studies.read(tmp_path), str(tmp_path / "data" / "log.txt")
    with pytest.raises(ValueError, match=f"two failed with exit code 0: .*log: {log}"):
        study_run.make_data(Data(study, str(tmp_path / "data")), study.runs, log, 1, [])
    assert (tmp_path / "a").exists() and "$ python -m two" in pathlib.Path(log).read_text()
    commands.pop()
    (tmp_path / "a").unlink()
    study_run.make_data(Data(study, str(tmp_path / "data")), study.runs, log, 1, [])
