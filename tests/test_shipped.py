"""The shipped model: small, whole, loaded by its name from any folder, and as good as its card says."""

import itertools
import json
import os
import re
import subprocess
import sys

import numpy as np
from PIL import Image
from scipy import stats

from itit import ITIT, models, storage
from itit.checkpoint import weights
from itit.data import scenes
from tests.helpers.common import ROOT
from tools.data import scene_splits

FOLDER = ROOT / "itit" / "shipped" / "scenes"
MOST_BYTES = 6e6  # it is in every clone and in every wheel
FALSE_ALARMS = 1e-5


def test_it_is_small_and_whole():
    files = {path for path in FOLDER.rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    recorded = {FOLDER / "hashes.json"}
    for part in (FOLDER, FOLDER / "t5", FOLDER / "vqgan"):
        recorded.add(part / "hashes.json")
        for name, entry in json.loads((part / "hashes.json").read_text())["files"].items():
            assert entry == {"bytes": (part / name).stat().st_size, "sha256": storage.sha256(str(part / name))}
            recorded.add(part / name)
    assert recorded == files


def test_its_name_is_the_folder_whatever_lies_beside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes").mkdir()
    assert weights.exported_file("scenes") == weights.exported_file(str(FOLDER))
    assert weights.read_record(weights.exported_file("scenes")[0])["prompt"]
    assert all(p.dtype.itemsize == 4 for p in models.load("scenes").parameters())  # though stored in two bytes


def test_the_readme_begins_with_it(tmp_path):
    """Its first lines of Python, as they stand there, in another folder: a picture and what it shows."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert 'from_pretrained("scenes")' in code and len(code.split("\n\n")[-1].splitlines()) <= 4
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.iterdir()
    assert len(scenes.read(np.asarray(Image.open(picture)))) == len(scenes.parse(done.stdout)) == 1


def test_its_scores_are_those_of_its_card():
    """New scenes of the split that the card's are of; that their shares differ by chance, Fisher's exact test."""
    text = (FOLDER / "README.md").read_text()
    told = {name: float(re.search(rf"^\| {name} \| (\S+) \|$", text, re.MULTILINE)[1])
            for name in ("num_test", "caption_score", "picture_score")}  # fmt: skip
    assert "objects, one of them at least shown by unpaired pictures and texts alone" in text
    model, count = ITIT.from_pretrained("scenes", device="cpu"), 64
    seed = int(np.random.default_rng().integers(1, 2**31))
    pictures, captions = zip(*scene_splits.draw("unpaired", count, seed), strict=True)
    truth = [scenes.parse(caption) for caption in captions]
    said = [scenes.parse(s) for s in model.caption(list(map(Image.fromarray, pictures)), batch_size=count)]
    shown = [scenes.read(np.asarray(picture)) for picture in model.generate(captions, seed, batch_size=count)]
    for name, found in (("caption_score", said), ("picture_score", shown)):
        right, theirs = sum(a == b for a, b in zip(found, truth, strict=True)), round(told[name] * told["num_test"])
        table = [[right, count - right], [theirs, told["num_test"] - theirs]]
        assert stats.fisher_exact(table).pvalue > FALSE_ALARMS, (name, seed, table)


def test_it_reads_its_own_pictures(tmp_path):
    """Saved as files: their codes are for the most part those that they were drawn from. Every second caption is right;
    by a tokenizer that draws what it does not read again, none."""
    model, rng, count = ITIT.from_pretrained("scenes", device="cpu"), np.random.default_rng(), 60
    drawn = (scenes.sample(rng, ("seen", "unpaired")) for _ in range(100 * count))
    prompts = [scenes.describe(scene, rng) for scene in itertools.islice((s for s in drawn if len(s) == 1), count)]
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for picture, path in zip(model.generate(prompts, seed=int(rng.integers(2**31))), paths, strict=True):
        picture.save(path)
    shown = [scenes.read(np.asarray(Image.open(path))) for path in paths]
    said = [scenes.parse(caption) for caption in model.caption(list(map(str, paths)))]
    assert sum(a == b for a, b in zip(said, shown, strict=True)) >= count / 4
