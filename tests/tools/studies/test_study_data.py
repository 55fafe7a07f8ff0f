"""tools.studies.study_data: what a run reads, what is made for it and in which order, and prefixes of a draw."""

import numpy as np
import pytest

from itit.data import records, shard_index
from tests.helpers import studies
from tests.helpers.common import ROOT
from tools.studies import study_data
from tools.studies.study_data import Data

MORE = "\n[row 13]\nimages = pairs\ntexts = pairs\nextra = 7\nwrong_captions = 0.5\nseeds = 2\nflags =\n"\
       "    --t2i_batch=25% --i2t_batch=25% --t2i2t_batch=25% --i2t2i_batch=25%\n"  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    return studies.read(tmp_path, studies.TEXT + MORE)


def make(commands):
    """What the commands would leave; ids as records that tell their number."""
    for command in commands:
        given = dict(part.lstrip("-").partition("=")[::2] for part in command.arguments)
        for part in given.get("splits", "").split(",") if command.module == "tools.scene_ids" else ():
            split, count = part.split(":")
            path = f"{given['output']}/{split}-00000-of-00001.tfrecord"
            study_data.storage.make_dirs(given["output"])
            with records.RecordWriter(path) as writer:
                for number in range(int(count)):
                    writer.write(records.encode_example({"key": f"{split}/{given['seed']}/{number}"}))
        if not study_data.storage.exists(command.path):
            study_data.storage.make_dirs(command.path.rpartition("/")[0])
            study_data.storage.write_bytes(command.path, b"")


def keys(path):
    payloads = [records.read(path, *span) for span in records.index(path).tolist()]
    return [records.decode_example(payload)["key"][0].decode() for payload in payloads]


def given_to(data, *run):
    """Flag -> value of what a run is told of its data."""
    return dict(argument.lstrip("-").split("=") for argument in data.arguments(*run))


def test_data_are_made_once_and_cut(tmp_path, study):
    data = Data(study, str(tmp_path / "data"))
    commands = data.commands(study.runs)
    modules = [command.module.removeprefix("tools.") for command in commands]
    assert modules[:4] == ["make_scenes", "train_sentencepiece", "train_vqgan", "scene_ids"]
    drawn = [" ".join(a for a in c.arguments if a.startswith(("--splits", "--seed"))) for c in commands[3:]]
    assert drawn[0] == "--splits=seen:40,unpaired:40,never:40 --seed=0"
    expected = {f"--splits=paired:300 --seed={seed}" for seed in (0, 1, 2, 5)}
    expected |= {f"--splits={split} --seed=0" for split in ("images:20000", "texts:20000", "extra:7")}
    assert set(drawn[1:]) == expected
    assert [c for c in commands if "--wrong_captions=0.5" in c.arguments][0].path.endswith(
        "extra-0-wrong0.5-7/extra-00000-of-00001.tfrecord")  # fmt: skip
    make(commands)
    data.cut(study.runs)
    assert data.commands(study.runs) == []
    alone, few, more, own = study.experiments
    given = given_to(data, few, 5)
    assert keys(given["paired_data"]) == [f"paired/5/{i}" for i in range(30)]
    np.testing.assert_array_equal(shard_index.read(given["paired_data"]), records.index(given["paired_data"]))
    given_more = dict(a.lstrip("-").split("=") for a in data.arguments(more, 5))
    assert (
        keys(given_more["paired_data"])[:30] == keys(given["paired_data"])
        and len(keys(given_more["paired_data"])) == 300
    )
    assert given_more["image_data"] == given["image_data"] and len(keys(given["image_data"])) == 20000
    assert given["eval_data"] == f"{data.tests(few)}/never-*.tfrecord"
    assert set(given_to(data, alone, 1)) == {"vocabulary", "vqgan", "paired_data", "eval_data"}
    mixed = given_to(data, own, 2)
    pairs, extra = mixed["paired_data"].split(",")
    assert mixed["image_data"] == mixed["text_data"] == pairs and keys(extra) == [f"extra/0/{i}" for i in range(7)]


def test_another_study_draws_only_what_is_missing(tmp_path, study):
    data = Data(study, str(tmp_path / "data"))
    make(data.commands(study.runs))
    data.cut(study.runs)
    longer = studies.read(tmp_path, studies.TEXT.replace("pairs = 30, 300", "pairs = 30, 1000"))
    other = Data(longer, str(tmp_path / "data"))
    commands = other.commands(longer.runs)
    assert [c.arguments[0] for c in commands] == ["--splits=paired:1000"]
    make(commands)
    other.cut(longer.runs)
    path = given_to(other, longer.experiments[2], 5)["paired_data"]
    assert keys(path) == [f"paired/5/{i}" for i in range(1000)]


def test_ids_of_another_kind_lie_apart(tmp_path, study):
    longer = studies.read(tmp_path, studies.TEXT.replace("--dropout=0.1", "--num_text_tokens=40"))
    data, other = Data(study, str(tmp_path)), Data(longer, str(tmp_path))
    assert data.folder(study.experiments[0]) == data.folder(study.experiments[1])
    assert data.folder(study.experiments[0]) != other.folder(longer.experiments[0])


def test_a_prefix_wants_enough_records(tmp_path):
    source = str(tmp_path / "a.tfrecord")
    with records.RecordWriter(source) as writer:
        writer.write(records.encode_example({"key": "x"}))
    with pytest.raises(ValueError, match="a.tfrecord: 1 records, 2 are wanted"):
        study_data.write_prefix(source, 2, str(tmp_path / "b.tfrecord"))
    assert not (tmp_path / "b.tfrecord").exists()
