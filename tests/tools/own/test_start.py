"""tools.start as a user calls it: from drawings to a report, killed at every step; what it refuses, in one line."""

import dataclasses
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from itit.data import records
from tests.helpers.common import ROOT
from tools import start
from tools.own import pipeline

COLOURS, SHAPES = ("rot", "grün", "blau"), ("Kreis", "Quadrat")
VQGAN = """--patch_size=4
--channels=8
--channel_multipliers=1
--num_res_blocks=1
--latent_dim=4
--codebook_size=40
--batch_size=4
--num_steps=4
--checkpoint_every=2
"""
TINY = ["--image_size=16", "--num_text_tokens=12", "--embed_dim=32", "--text_decoder_dim=32", "--depth=1",
        "--image_decoder_depth=1", "--text_decoder_depth=1", "--beam_size=1", "--num_decode_steps=2", "--t2i_batch=4",
        "--i2t_batch=4", "--t2i2t_batch=4", "--i2t2i_batch=4", "--sample_every=0", "--checkpoint_every=2",
        "--backend=cpu"]  # fmt: skip
# Commands that a call is killed in, once each.
KILLED = ["tools.prepare", "tools.train_sentencepiece", "tools.train_vqgan", "tools.tokenize", "itit.train",
          "tools.caption", "tools.report_own"]  # fmt: skip


def draw(path, rng):
    """A drawing of any size, in the format of its suffix; returns what it shows."""
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    picture = Image.new("RGB", tuple(map(int, rng.integers(12, 60, 2))), "white")
    rgb = {"rot": "red", "grün": "green", "blau": "blue"}[colour]
    method = "ellipse" if shape == "Kreis" else "rectangle"
    getattr(ImageDraw.Draw(picture), method)((2, 2, picture.width - 3, picture.height - 3), fill=rgb)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return f"ein {shape}, {colour}"


@pytest.fixture
def root(tmp_path):
    """30 pairs, 8 other pictures, a damaged one and one of another kind; few texts in two files."""
    rng, root = np.random.default_rng(), tmp_path / "my [old] pictures, 1"
    for number in range(38):
        path = (
            root / ("", "sub folder (x)", "a/b")[number % 3] / f"{number}.{('jpg', 'png', 'webp', 'gif')[number % 4]}"
        )
        text = draw(path, rng)
        if number < 30:
            path.with_suffix(".txt").write_text(text)
    (root / "damaged.png").write_bytes(b"no picture")
    (root / "other.heic").write_bytes(b"x")
    for name in ("one.txt", "b/two.TXT"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("ein Kreis, rot\nein Quadrat, blau\nein Kreis\n")
    (tmp_path / "vqgan.cfg").write_text(VQGAN)
    return root


def command(root, *given):
    folder = root.parent
    return [sys.executable, "-m", "tools.start", str(root), str(folder / "texts"), f"--output={folder / 'out'}",
            f"--tokenizer={folder / 'vqgan.cfg'}", *TINY, *given]  # fmt: skip


def call(*arguments):
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def commands(said):
    """What was begun, as it is printed."""
    return re.findall(r"^\$ python -m ((?:.*\\\n)*.*)$", said, re.MULTILINE)


def modules(said):
    return [command.split()[0] for command in commands(said)]


def kill_in(arguments, module, seconds):
    """SIGKILL to a call, some time after it has begun with a command. Returns all that it said until then."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    said = ""
    while module not in modules(said):
        line = process.stdout.readline()
        assert line, said
        said += line
    time.sleep(seconds)
    process.kill()
    process.wait()
    return said


def keys(out, split):
    folder = out / pipeline.SPLITS[split]
    found = [records.read(str(path), *span) for path in folder.glob(f"{split}-*.tfrecord")
             for span in records.index(str(path)).tolist()]  # fmt: skip
    return {records.decode_example(data)["key"][0].decode() for data in found}


def test_killed_at_every_step_it_repeats_nothing_that_is_done(root):
    out, rng, finished = root.parent / "out", np.random.default_rng(), set()
    for module in KILLED:
        said = kill_in(command(root, "--num_steps=6"), module, float(rng.uniform(0, 1)))
        *done, killed = commands(said)
        tells = "6 unpaired texts: the t2i2t cycle joins at step 1\n8 unpaired pictures: the i2t2i cycle" in said
        assert tells or module != "itit.train"
        assert killed.split()[0] == module and not finished & {*done, killed}
        finished.update(done)
    code, said, errors = call(*command(root, "--num_steps=6"))
    assert code == 0 and not finished & set(commands(said)), errors
    # A command that was killed may have been done by then, and is not begun again.
    assert 14 - len(KILLED) <= len(finished | set(commands(said))) <= 14
    assert [line for line in said.splitlines() if re.match(r"\d/7 ", line)] == [
        "1/7 Pictures and texts to shards", "2/7 Vocabulary", "3/7 Image tokenizer",
        "4/7 Pictures and texts to ids, once for all steps", "5/7 Training", "6/7 Samples and scores of held-out pairs",
        "7/7 Report"]  # fmt: skip
    assert f"done: {out}/report.md" in said

    found = {split: keys(out, split) for split in pipeline.SPLITS}
    assert {split: len(names) for split, names in found.items()} == {
        "paired": 27,
        "held_out": 3,
        "images": 8,
        "texts": 6,
    }
    assert not found["held_out"] & (found["paired"] | found["images"])
    told = json.loads((out / "step_6" / "told" / "captions.json").read_text())
    assert {line["image_id"] for line in told} == found["held_out"]
    report = (out / "report.md").read_text()
    pictures = re.findall(r"\]\((.+)\)", report)
    assert len(pictures) == 5 and all((out / name).stat().st_size > 1000 for name in pictures)
    assert "| pairs | 27 |" in report and "data/damaged.txt" in report and "Captions of 3 held-out pictures" in report
    scores = json.loads((out / "step_6" / "scores.json").read_text())
    assert f"| the model's | {100 * scores['CIDEr']:.1f} |" in report

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    code, said, _ = call(*command(root, "--num_steps=6"))
    assert code == 0 and not commands(said) and said.count("done before") == 14
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def settings_of(root, **values):
    (root.parent / "vqgan.cfg").write_text(VQGAN)
    chosen = dict(output=str(root.parent / "out"), tokenizer=str(root.parent / "vqgan.cfg"), image_size=16)
    return dataclasses.replace(start.Settings(), **chosen | values)


@pytest.mark.parametrize(
    "words, values, training, message",
    [
        ([], {}, [], "name a folder of pictures: python -m tools.start PICTURES"),
        (["nowhere"], {}, [], "nowhere: no such folder of pictures$"),
        (["README.md"], {}, [], "README.md: no such folder of pictures; a file of captions is given by --captions"),
        (["gs://bucket/x"], {}, [], "gs://bucket/x, --output=.*: must be local"),
        (
            ["tests"],
            dict(output="tests/own/.."),
            [],
            "--output=tests/own/..: lies in tests, whose pictures it would be",
        ),
        (["tests"], dict(output="a,b"), [], "--output=a,b: must have none of"),
        (["tests"], dict(num_steps=5, minutes=1.0), [], "--minutes=1.0: must be above 0, without --num_steps"),
        (["tests"], dict(minutes=0.0), [], "--minutes=0.0: must be above 0"),
        (["tests"], dict(held_out=0.0), [], "--held_out=0.0: must be above 0 and below 1"),
        (
            ["tests"],
            dict(image_size=18),
            [],
            "--image_size=18: must be a multiple of 4, the side of a token of .*vqgan.cfg",
        ),
        (["tests"], dict(tokenizer="none.cfg"), [], "none.cfg: no such flagfile"),
        (["tests"], {}, ["--minuts=3"], "--minuts: no such flag; did you mean --minutes?"),
        (["tests"], {}, ["--dropuot=0.2"], "--dropuot: no such flag; did you mean --dropout?"),
        (["tests"], {}, ["--dropout=2"], "--dropout=2.0: must be in"),
        (["tests"], {}, ["--workdir=x"], "--workdir: is set here; type the commands that are printed to give another"),
        (["tests"], {}, ["--t2i2t=off"], "--t2i2t=off: must be 'off' exactly where t2i2t_batch is 0"),
    ],
)
def test_mistakes_are_found_before_the_first_step(tmp_path, monkeypatch, words, values, training, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message):
        start.check(words, settings_of(tmp_path / "in", **values), training)
    assert not (tmp_path / "out").exists()


def test_own_flags_and_those_of_the_training(monkeypatch):
    monkeypatch.setattr(start.absl_flags, "FLAGS", start.absl_flags.FlagValues())
    start.flags.define(start.Settings(), start.absl_flags.FLAGS)
    argv = ["start", "my pictures", "a.txt", "b.txt", "--minutes=3", "--nosynth_cfg", "--flagfile=x.cfg", "--help", "c"]
    assert start.take_words(argv) == ["my pictures", "a.txt", "b.txt"]
    assert start.take_training(argv) == ["--nosynth_cfg", "--flagfile=x.cfg"]
    assert argv == ["start", "--minutes=3", "--help", "c"]
    assert start.take_words(argv) == []


def test_folders_that_are_refused(root, monkeypatch):
    monkeypatch.chdir(ROOT)
    other = root.parent / "other"
    other.mkdir()
    (other / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="--output=.*other: holds something else; name another folder"):
        pipeline.Pipeline(settings_of(root, output=str(other)), str(root), "", []).begin()
    for path in root.rglob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="pictures, 1: 39 pictures, none with a caption: some dozens need one"):
        pipeline.Pipeline(settings_of(root), str(root), "", []).begin()
    assert not (root.parent / "out").exists()
    # Captions that are there and say nothing are found out when they are read.
    (root / "0.txt").write_text(" ")
    made = pipeline.Pipeline(settings_of(root), str(root), "", [])
    assert made.begin() == [f"{root}: 39 pictures, 1 of them with captions (fingerprint {made.begin()[0][-13:-1]})",
                            "unpaired texts: none"]  # fmt: skip
    with pytest.raises(
        ValueError, match="no picture with a caption is left that is paired; damaged ones: .*damaged.txt"
    ):
        made.shards()


def test_what_has_changed_since_is_one_line(root, monkeypatch):
    monkeypatch.chdir(ROOT)
    texts = root.parent / "texts"

    def begin(**values):
        pipeline.Pipeline(settings_of(root, **values), str(root), str(texts), []).begin()

    begin()
    before = (root.parent / "out" / "settings.json").read_bytes()
    with pytest.raises(ValueError, match="out: --held_out: was 0.1, is now 0.2; name another --output, or remove this"):
        begin(held_out=0.2)
    for path, message in (
        (root / "0.txt", r"the pictures: was 39 pictures, 30 of them with captions \(.+\), is now 39 .+;"),
        (texts / "one.txt", "the texts: was 2 files of 86 bytes .+, is now 2 files of 87 bytes .+;"),
        (root / "new.jpg", "the pictures: was 39 pictures, .+, is now 40 pictures, 30 of them .+;"),
    ):
        was = path.read_bytes() if path.exists() else None
        path.write_bytes((was or b"") + b"\n")
        with pytest.raises(ValueError, match=message):
            begin()
        path.write_bytes(was) if was else path.unlink()
    (root.parent / "other.cfg").write_text(VQGAN.replace("=40", "=41"))
    with pytest.raises(
        ValueError, match="the flags of --tokenizer: was --patch_size=4 .+=40 .+, is now --patch.+=41 .+;"
    ):
        begin(tokenizer=str(root.parent / "other.cfg"))
    begin()
    assert (root.parent / "out" / "settings.json").read_bytes() == before


def test_thirty_pairs_alone_with_a_file_of_captions(root, monkeypatch):
    """Nothing unpaired: both cycles are off, their shards are not named, and a file in the folder is taken."""
    monkeypatch.chdir(ROOT)
    for path in root.rglob("*.txt"):
        path.unlink()
    (root / "captions.csv").write_text("file_name,text\n0.jpg,one\n")
    made = pipeline.Pipeline(settings_of(root), str(root), "", ["--dropout=0.2"])
    assert made.begin()[0].endswith(f"), by {root}/captions.csv")
    (prepare,) = made._prepare()
    assert {"folder", f"--input={root}", f"--captions={root}/captions.csv", "--held_out=0.1"} <= set(prepare.arguments)
    (root.parent / "out" / "data").mkdir()
    shards = {split: {"records": count, "shards": [{}]} for split, count in (("paired", 27), ("held_out", 3))}
    (root.parent / "out" / "data" / "dataset.json").write_text(json.dumps({"splits": shards}))
    (vocabulary,) = made._vocabulary()
    assert f"--input={root.parent}/out/data/paired-*.tfrecord" in vocabulary.arguments
    assert [command.arguments[1] for command in made._ids()] == [
        f"--output={root.parent}/out/ids/paired", f"--output={root.parent}/out/ids/held_out"]  # fmt: skip
    given, said = made._flags(1000)
    assert {"--t2i2t=off", "--i2t2i=off", "--t2i2t_batch=0", "--i2t2i_batch=0", "--t2i_batch=16"} <= set(given)
    assert not any(flag.startswith(("--text_data", "--image_data")) for flag in given) and given[-1] == "--dropout=0.2"
    assert said == ["no unpaired texts: the t2i2t cycle is off", "no unpaired pictures: the i2t2i cycle is off"]


def test_the_length_in_minutes_follows_from_the_speed(root, monkeypatch):
    """Measured once; and a training that is longer than asked for is done."""
    monkeypatch.chdir(ROOT)
    made = pipeline.Pipeline(settings_of(root, minutes=3.0), str(root), "", ["--dropout=0.2"])
    monkeypatch.setattr(made, "_flags", lambda num_steps: ([f"--num_steps={num_steps}"], ["said"]))
    commands = made._train()
    timed = next(commands)
    speed = root.parent / "out" / "speed.json"
    assert timed.module == "tools.bench" and f"--json={speed}" in timed.arguments and not timed.done()
    speed.parent.mkdir()
    speed.write_text('{"own.cfg": {"seconds": 0.25}}')
    train = next(commands)
    assert timed.done() and train.arguments == ("--num_steps=720", f"--workdir={root.parent}/out/itit")
    for step, done in ((719, False), (720, True), (800, True)):
        folder = root.parent / "out" / "itit" / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        assert made.step() < step
        (folder / "commit.json").touch()
        assert made.step() == step and train.done() == done
