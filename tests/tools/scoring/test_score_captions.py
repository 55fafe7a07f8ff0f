"""`python -m tools.score_captions` as a user calls it, and COCO's json forms."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from itit.data import records
from itit.scores import captions
from tests.helpers.common import ROOT
from tools import score_captions
from tools.data import coco_json
from tools.generation import inputs

REFERENCES = {7: ["A dog runs.", "The dog is running"], 9: ["A red ball"], 11: ["A cat sleeps", "A cat on a mat"]}


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


@pytest.fixture
def references(tmp_path):
    annotations = [{"image_id": i, "caption": text} for i, texts in REFERENCES.items() for text in texts]
    return write(tmp_path / "references.json", {"annotations": annotations})


def call(*args):
    return subprocess.run(
        [sys.executable, "-m", "tools.score_captions", *args], cwd=ROOT, capture_output=True, text=True
    )


def test_scores_a_subset_and_warns(references, tmp_path):
    results = write(tmp_path / "results.json", [{"image_id": 11, "caption": "A cat sleeps."},
                                                {"image_id": 7, "caption": "a dog runs"}])  # fmt: skip
    done = call(f"--references={references}", f"--results={results}", f"--json={tmp_path / 'scores.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scores.json").read_text())
    expected = captions.score(["a dog runs", "A cat sleeps."], [REFERENCES[7], REFERENCES[11]])
    assert {name: found[name] for name in expected} == expected and found["num_images"] == 2
    assert set(found["statistics"]) == {"words", "empty", "distinct", "vocabulary", "repeating"}
    assert "2 images" in done.stdout and "1 of 3 images have no caption" in done.stdout
    assert done.stderr.startswith("warning: 2 images")


def test_references_of_what_was_described(tmp_path):
    """Of a folder and of shards: a picture has the id by which tools.caption calls it."""
    (tmp_path / "own" / "cats").mkdir(parents=True)
    for number, (name, text) in enumerate({"7.png": "A dog\nruns.\n", "cats/b.png": "a cat", "c.png": ""}.items()):
        path = tmp_path / "own" / name
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        path.with_suffix(".txt").write_text(text)
    Image.new("RGB", (8, 8)).save(tmp_path / "own" / "alone.png")
    folder = inputs.references(str(tmp_path / "own"))
    assert folder == {7: ["A dog\nruns."], "cats/b.png": ["a cat"]}
    with records.RecordWriter(str(tmp_path / "own-0.tfrecord")) as writer:
        for key, picture, text in (("9/1", "7.png", "one"), ("9/2", "7.png", "two"), ("x", "cats/b.png", "three")):
            data = (tmp_path / "own" / picture).read_bytes()
            writer.write(records.encode_example({"key": key, "image": data, "text": text}))
    shards = f"{tmp_path}/own-*.tfrecord"
    assert inputs.references(shards) == {9: ["one", "two"], "x": ["three"]}
    assert {picture.image_id for picture in inputs.pictures(shards)} == {9, "x"}
    results = write(tmp_path / "results.json", [{"image_id": 9, "caption": "two"}, {"image_id": "x", "caption": "no"}])
    done = call(f"--references={shards}", f"--results={results}", f"--json={tmp_path / 'scores.json'}")
    assert done.returncode == 0, done.stderr
    expected = captions.score(["two", "no"], [["one", "two"], ["three"]])
    assert json.loads((tmp_path / "scores.json").read_text()).items() >= expected.items()
    for path in (tmp_path / "own").rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="own: no picture has a text: x.txt beside x.jpg, or 'text' in its record"):
        inputs.references(str(tmp_path / "own"))


@pytest.mark.parametrize(
    "results, message",
    [
        ([], "needs a JSON list"),
        ([{"image_id": 7}], "result 0: needs 'image_id' and 'caption'"),
        (
            [{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}],
            "result 1: image_id 7 has a caption already",
        ),
        ([{"image_id": 8, "caption": "a"}], "image_id 8 has no reference"),
        ([{"image_id": 7, "caption": 5}], "caption a text"),
    ],
)
def test_bad_input_in_one_line(references, tmp_path, results, message):
    path = write(tmp_path / "results.json", results)
    with pytest.raises(ValueError, match=message):
        score_captions.pair(coco_json.read_results(path), coco_json.read_references(references), path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        coco_json.read_references(str(tmp_path / "absent.json"))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        coco_json.read_results(str(tmp_path / "text.json"))
    with pytest.raises(ValueError, match="'images'"):
        coco_json.file_names(write(tmp_path / "other.json", {}))
    path = write(tmp_path / "images.json", {"images": [{"id": 4, "file_name": "a.jpg"}]})
    assert coco_json.file_names(path) == {4: "a.jpg"}
