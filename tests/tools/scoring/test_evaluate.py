"""protocols and tools.evaluate: the lists, what is refused, and both kinds of evaluation on a small model."""

import json
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from itit.pretrained import ITIT
from itit.scores import captions as captions_lib
from tests.helpers import finished_run
from tests.helpers.common import ROOT, shared_data
from tools import evaluate
from tools.data import coco_json
from tools.generation import inputs
from tools.generation.generation import Drawing, Sharing
from tools.scoring import protocols


def coco(path, texts, name="COCO_val2014_{:012d}.jpg", order=None):
    """COCO's json of two captions an image."""
    images = [{"id": i, "file_name": name.format(i)} for i in texts]
    entries = [
        {"id": 10 * i + j, "image_id": i, "caption": text} for i, ts in texts.items() for j, text in enumerate(ts)
    ]
    entries = [entries[k] for k in order] if order is not None else entries
    path.write_text(json.dumps({"images": images, "annotations": entries}))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, json of captions, folder of pictures, Karpathy's list) of a small model and 6 pictures of Scenes."""
    folder = tmp_path_factory.mktemp("run")
    config, pairs = finished_run.of_scenes(folder)
    (folder / "val2014").mkdir()
    names = [f"COCO_val2014_{i:012d}.png" for i in range(1, 7)]
    for name, (picture, _) in zip(names, pairs, strict=False):
        Image.fromarray(picture).save(folder / "val2014" / name)
    (folder / "list.txt").write_text("".join(f"val2014/{name} {i}\n" for i, name in enumerate(names, 1)))
    texts = {i: [text, text + " ."] for i, (_, text) in enumerate(pairs[:6], 1)}
    return config.train.workdir, coco(folder / "c.json", texts), str(folder / "val2014"), str(folder / "list.txt")


def test_the_list_of_prompts_is_fixed_by_its_seed(tmp_path):
    texts = {i: [f"a{i}", f"b{i}"] for i in range(1, 41)}
    order = np.random.default_rng().permutation(80)
    a, b = coco(tmp_path / "a.json", texts), coco(tmp_path / "b.json", texts, order=order)
    chosen = protocols.choose_prompts(a, 20)
    assert chosen == protocols.choose_prompts(b, 20) != protocols.choose_prompts(a, 20, seed=1)
    assert len({prompt.image_id for prompt in chosen}) == 20
    assert all(prompt.text in texts[prompt.image_id] for prompt in chosen)
    assert {prompt.text[0] for prompt in chosen} == {"a", "b"}
    assert protocols.choose_prompts(a, 40)[:20] == chosen
    # For ever: of SHA-256 alone.
    assert [prompt.image_id for prompt in protocols.choose_prompts(a, 3)] == [1, 32, 9]
    with pytest.raises(ValueError, match="captions of 40 images, --num_prompts=41"):
        protocols.choose_prompts(a, 41)


def test_the_split_is_what_the_files_say(tmp_path):
    texts = {1: ["a"], 2: ["b"]}
    old = coco(tmp_path / "captions.json", texts)
    new = coco(tmp_path / "captions_val2017.json", texts, name="{:012d}.jpg")
    own = coco(tmp_path / "mine.json", texts, name="{}.jpg")
    (tmp_path / "captions_train2014.json").write_text(json.dumps({"annotations": []}))
    assert [protocols.split_of(path) for path in (old, new, own)] == ["val2014", "val2017", "unknown"]
    assert protocols.split_of(str(tmp_path / "captions_train2014.json")) == "train2014"
    assert protocols.split_of(own, "mine") == "mine" and protocols.split_of(new, "val2017") == "val2017"
    with pytest.raises(ValueError, match="^--split=train2014: .*captions.json is of val2014$"):
        protocols.split_of(old, "train2014")


def test_karpathy_lists():
    found = protocols.read_list(str(shared_data() / "coco" / "karpathy_test_images.txt"))
    assert len(found) == len(set(found)) == protocols.NUM_TEST


def test_lists_as_people_have_them(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeffmy photo.jpg 12\r\n\r\nval2014/b.jpg\t7\r\n".encode())
    assert protocols.read_list(str(tmp_path / "list.txt")) == [12, 7]


def test_bad_lists(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with pytest.raises(ValueError, match="not a list of images"):
        protocols.read_list(str(tmp_path / "list.txt"))


def test_captions_of_a_model(run, tmp_path):
    workdir, captions, images, names = run
    command = [sys.executable, "-m", "tools.evaluate", "--protocol=coco_zero_shot", f"--workdir={workdir}",
               f"--captions={captions}", f"--images={images}", f"--image_list={names}", "--backend=cpu",
               f"--output={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    told, references = coco_json.read_results(f"{tmp_path}/captions.json"), coco_json.read_references(captions)
    expected = captions_lib.score(list(told.values()), [references[i] for i in told])
    assert {name: result[name] for name in expected} == expected and result["num_images"] == 6
    assert result["protocol"] == "coco_zero_shot" and not result["whole"] and result["settings"]["workdir"] == workdir
    line = done.stdout.strip().splitlines()[-1]
    assert line.startswith("| coco_zero_shot | val2014 | CIDEr") and "NOT THE WHOLE PROTOCOL" in line


def test_pictures_that_are_not_there(run):
    _, _, images, _ = run
    with pytest.raises(ValueError, match="no picture of image 99, of 1 in all"):
        protocols.choose_pictures(images, [2, 99, 1], False)
    pictures, absent = protocols.choose_pictures(images, [2, 99, 1], True)
    assert [picture.image_id for picture in pictures] == [2, 1] and absent == 1


def test_pictures_of_a_model(run, tmp_path):
    workdir, captions, images, _ = run
    model = ITIT.from_run(workdir, device="cpu")
    prompts = protocols.choose_prompts(captions, 5)
    arguments = model, prompts, images, Corners(), str(tmp_path), Drawing(), 4, Sharing(), True
    result = protocols.evaluate_pictures(*arguments)
    assert result["frechet_corners"] > 0 and result["num_pictures"] == 5 and result["num_reference"] == 6
    assert result["too_few_pictures"] and not result["whole"] and "64 pixels" in result["made"]["resize"]
    assert protocols.evaluate_pictures(*arguments) == result
    with pytest.raises(ValueError, match=r"^6 pictures \(reference\): below 2048"):  # before anything is drawn
        protocols.evaluate_pictures(*arguments[:4], str(tmp_path / "none"), *arguments[5:-1], False)
    assert not (tmp_path / "none").exists()
    assert "NOT THE WHOLE" in protocols.row("coco_fid30k", "val2014", result)
    assert len(inputs.find(f"{tmp_path}/pictures")) == 5


class Corners:
    """In an extractor's place: the colours of two corners."""

    name, stamp = "frechet_corners", {"extractor": "corners", "sha256": "0"}

    def __call__(self, pictures):
        return pictures[:, [0, -1], [0, -1]].reshape(len(pictures), -1).astype(np.float32)


def test_what_is_missing_is_said_before_anything_is_loaded():
    good = dict(protocol="coco_fid30k", inception="x", features="", reference="y", num_prompts=30_000, force=False)
    evaluate.check(types.SimpleNamespace(**good))
    for changes, message in (({"inception": ""}, "one of the two"), ({"reference": ""}, "--reference is empty"),
                             ({"num_prompts": 5}, "--num_prompts=5: the protocol has 30000"),
                             ({"protocol": "coco_zero_shot", "images": ""}, "--images is empty")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            evaluate.check(types.SimpleNamespace(**good | changes))
