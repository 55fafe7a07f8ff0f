"""study_file and experiments: what a study says, which runs are the same, and mistakes in one line."""

import dataclasses
import re

import pytest

from itit import flags
from itit.train_step import tasks
from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import experiments, study_file


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def changed(**lines):
    """TEXT with further lines in [study] (`study`) or in the last section (`last`)."""
    head, last = lines.get("study", ""), lines.get("last", "")
    return studies.TEXT.replace("title = Pairs and more", f"title = Pairs and more\n{head}") + f"{last}\n"


def test_what_it_says(tmp_path):
    study = studies.read(tmp_path)
    alone, few, more = study.experiments
    assert (study.name, study.title, study.test, study.plot) == ("some", "Pairs and more", 40, "bars")
    assert [e.name for e in study.experiments] == ["pairs alone", "both cycles, pairs 30", "both cycles, pairs 300"]
    assert [e.series for e in study.experiments] == ["pairs alone", "both cycles", "both cycles"]
    assert few.paper["FID"] == 14.3 and more.paper["FID"] == 14.1
    assert alone.about == "both directions" and alone.paper == {"FID": 15.7, "CIDEr": 23.5}
    assert [(e.name, seed) for e, seed in study.runs] == [("pairs alone", 0), ("pairs alone", 1), (few.name, 5),
                                                          (more.name, 5)]  # fmt: skip
    assert alone.values == {"pairs": 300}  # no task takes unpaired data
    assert few.values == {"pairs": 30, "images": 20000, "texts": 20000}
    assert tasks(alone.config, 0) == {"t2i": 32, "i2t": 32}
    assert tasks(few.config, 39) == {"t2i": 16, "i2t": 16} and sum(tasks(few.config, 40).values()) == 64
    assert alone.config.model.dropout == few.config.model.dropout == 0.1
    assert [study.x_of(e) for e in study.experiments] == [300, 30, 300]
    total = dataclasses.replace(study, x="total")
    assert [total.x_of(e) for e in study.experiments] == [300, 40030, 40300]
    assert dataclasses.replace(study, x="t2i_batch").x_of(few) == 16


def test_data_of_the_pairs_themselves_and_extra_pairs(tmp_path):
    study = studies.read(tmp_path, changed(last="images = pairs\ntexts = pairs\nextra = 50\nwrong_captions = 0, 0.5"))
    assert [e.values for e in study.experiments[1:]] == [
        {"pairs": pairs, "extra": 50, "wrong_captions": share, "images": "pairs", "texts": "pairs"}
        for pairs, share in ((30, 0.0), (300, 0.5))
    ]
    assert dataclasses.replace(study, x="total").x_of(study.experiments[1]) == 80


def test_equal_runs_have_equal_digests(tmp_path):
    study = studies.read(tmp_path)
    alone, few, more = study.experiments
    found = [study.digest(e, seed) for e, seed in study.runs] + [study.digest(few, 6)]
    assert len(set(found)) == len(found)
    # Neither names nor what it is compared with, nor unpaired data and cycles that are off, nor how often it is saved.
    other = studies.read(tmp_path, studies.TEXT.replace("[pairs alone]", "[row 3]").replace("15.7", "12.3").replace(
        "--i2t2i=off", "--i2t2i=off --t2i2t_warmup_steps=7 --checkpoint_every=33 --log_every=1").replace(
        "test = 40", "test = 40\nimages = 123"))  # fmt: skip
    assert other.digest(other.experiments[0], 0) == study.digest(alone, 0)
    assert other.digest(other.experiments[1], 5) != study.digest(few, 5)
    changes = [
        ("test = 40", "test = 41"),
        ("--t2i_batch=50%", "--t2i_batch=50% --learning_rate=1e-3"),
        ("[pairs alone]", "[pairs alone]\npairs = 299"),
        ("seeds = 0, 1", "seeds = 0, 1\ndata_seed = 3"),
    ]
    for change in changes:
        other = studies.read(tmp_path, studies.TEXT.replace(*change))
        assert other.digest(other.experiments[0], 0) != study.digest(alone, 0), change
    settings = alone.settings
    assert settings["num_steps"] == 400 and "workdir" not in settings and "log_every" not in settings


def test_equal_values_have_equal_digests():
    assert experiments.digest({"a": 1, "b": [2]}) == experiments.digest({"b": [2], "a": 1})
    assert re.fullmatch("[0-9a-f]{12}", experiments.digest("x"))


@pytest.mark.parametrize(
    "text, said",
    [
        (changed(study="plots = bars"), r"\[study\]: unknown key 'plots'; allowed: title, base.*mean plot\?"),
        (changed(last="seed = 3"), r"\[both cycles\]: unknown key 'seed'; allowed: paper.*mean seeds\?"),
        (changed(last="title = x"), r"\[both cycles\]: unknown key 'title'"),
        (changed(study="plot = bar"), r"\[study\]: plot = bar: must be bars, lines, none; did you mean bars\?"),
        (changed(study="x = pears"), r"\[study\]: x = pears: must be pairs, .* or a flag; did you mean pairs\?"),
        (changed(study="log_x = yes\nx = extra"), r"\[study\]: log_x = yes: extra must be above 0"),
        (changed(study="eval = test"), r"\[study\]: eval = test: must be seen, unpaired, never"),
        (changed(study="batch = 63").replace("batch = 64\n", ""), "50%: must be a whole number of batch = 63"),
        (changed().replace("--dropout", "--dropuot"), r"\[pairs alone\]: flags: .*dropuot.*dropout"),
        (changed().replace("--dropout=0.1", "--dropout=10%"), r"\[pairs alone\]: flags: .*: per cents are for flags"),
        (changed().replace("--dropout=0.1", "--workdir=x"), r"flags: --workdir=x: the study sets it"),
        (changed().replace("--dropout=0.1", "dropout=0.1"), r"flags: dropout=0.1: no --flag"),
        (changed().replace("--t2i2t=off", ""), r"\[pairs alone\]: flags: --t2i2t=full: must be 'off' exactly"),
        (changed().replace("pairs = 30, 300", "pairs = 3, few"), r"\[both cycles\]: pairs = few: must be a whole"),
        (changed().replace("pairs = 30, 300", "pairs = 30, 300\nimages = 1, 2, 3"), "pairs has 2 values and images"),
        (changed().replace("pairs = 30, 300", "pairs = 1, 2\nimages = 0"), "images = 0: i2t2i_batch needs some"),
        (changed().replace("pairs = 30, 300", "pairs = 0, 1"), r"\[both cycles\]: pairs = 0: t2i_batch and i2t_batch"),
        (changed().replace("pairs = 30, 300", "pairs = 30, 30"), "two experiments are called 'both cycles, pairs 30'"),
        (changed(last="extra = 5\nwrong_captions = 2"), "wrong_captions = 2: must be a number from 0 to 1"),
        (changed().replace("seeds = 5", "seeds = 5, 5"), r"\[both cycles\]: seeds = 5, 5: each once"),
        (changed().replace("FID 15.7", "15.7"), r"\[pairs alone\]: paper = 15.7, CIDEr 23.5: must be a name"),
        (changed().replace("; FID 14.1, CIDEr 31.3", ""), "paper = FID 14.3, CIDEr 31.1: must be for 2 experiments"),
        (changed().replace("[both cycles]", "[pairs alone]"), "section 'pairs alone' already exists"),
        (changed(last="seeds = 6"), "option 'seeds' in section 'both cycles' already exists"),
        (changed().replace("base = {base}", "base = nowhere.cfg"), r"\[study\]: base = nowhere.cfg: no such file"),
        (changed().replace("base = {base}", ""), r"\[study\]: base is missing: flagfile that"),
        ("[a]\n", r"\[study\]: not there"),
        ("[study]\ntitle = x\nbase = {base}\n", "no experiment"),
        ("title\n", "no section headers"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, text, said):
    path = studies.write(tmp_path, text)
    with pytest.raises(ValueError, match=said) as error:
        study_file.read(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_a_study_is_found_by_name_or_path(tmp_path):
    path = studies.write(tmp_path)
    assert study_file.find(path) == path
    assert study_file.find("some", str(tmp_path)) == path
    with pytest.raises(ValueError, match="other.study: no such study; .* has some"):
        study_file.find("other", str(tmp_path))


SHIPPED = sorted((ROOT / "launch" / "flagfiles" / "mini").glob("*.study"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_studies_read_and_keep_one_batch(path):
    study = study_file.read(str(path.relative_to(ROOT)))
    last = [tasks(e.config, e.config.optim.num_steps - 1) for e in study.experiments]
    if path.stem != "settings":  # which is about them
        assert len({sum(active.values()) for active in last}) == 1, "the samples of a step differ"
    assert path.read_text().startswith(f"# python -m tools.study {path.stem}\n")
    assert all(len(line) <= 120 for line in path.read_text().splitlines())


def shares(config):
    """Task -> share of a step, once all have joined."""
    active = tasks(config, config.optim.num_steps - 1)
    return {task: size / sum(active.values()) for task, size in active.items()}


@pytest.mark.parametrize("number", range(1, 15))
def test_rows_of_table_2_in_miniature(number):
    """The same tasks with the same shares of a step as at the paper's scale, and the same kind of data."""
    folder = "launch/flagfiles"
    study = study_file.read(f"{folder}/mini/table2.study")
    mini = study.experiments[number - 1]
    whole = flags.from_flagfile(f"{folder}/table2/row{number:02d}.cfg")
    assert mini.name == f"row {number}" and len(study.experiments) == 14
    assert shares(mini.config) == shares(whole) and mini.config.objective.t2i2t == whole.objective.t2i2t
    assert mini.config.objective.i2t2i == whole.objective.i2t2i
    assert mini.config.objective.i2t_i2i_weight == whole.objective.i2t_i2i_weight
    assert mini.config.objective.t2i_text_drop_prob >= whole.objective.t2i_text_drop_prob
    own = "cc3m" in whole.data.image_data + whole.data.text_data
    assert (mini.values.get("images") == "pairs") == (mini.values.get("texts") == "pairs") == own
    assert ("extra" in mini.values) == ("webli" in whole.data.paired_data)
    assert len(mini.seeds) == (3 if number in (3, 7, 10, 14) else 1)
    head = (ROOT / folder / "table2" / f"row{number:02d}.cfg").read_text()
    said = re.search(r"FID ([0-9.]+|-), CIDEr ([0-9.]+|-)\.", head)
    paper = {name: float(value) for name, value in zip(("FID", "CIDEr"), said.groups(), strict=True) if value != "-"}
    assert mini.paper == paper
