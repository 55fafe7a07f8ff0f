"""tools.study as a user calls it: a tiny study from nothing, killed in the middle, gone on with, and reported."""

import re
import subprocess
import sys
import time

import pytest

from tests.helpers import small, studies
from tests.helpers.common import ROOT
from tools import study
from tools.studies import study_file, study_results

SIZES = small.SIZES | dict(
    t2i_batch=2, i2t_batch=2, t2i2t_batch=2, i2t2i_batch=2, t2i2t_warmup_steps=10, i2t2i_warmup_steps=10,
    num_text_tokens=40, vocab_size=320, bos_id=319, num_decode_steps=2, beam_size=1, image_size=64, num_steps=60,
    lr_warmup_steps=2, log_every=1, sample_every=0, checkpoint_every=5, eval_every=30, num_eval=3, compute_dtype="fp32",
)  # fmt: skip
VQGAN = """# Sixteen tokens of a picture.
--image_size=64
--patch_size=4
--channels=8
--channel_multipliers=1,1,2
--num_res_blocks=1
--latent_dim=4
--codebook_size=40
--batch_size=2
--num_steps=2
"""
TEXT = """[study]
title = Tiny
base = {base}
vqgan = {vqgan}
batch = 8
pairs = 20
images = 30
texts = 30
test = 3

[pairs alone]
flags = --t2i_batch=50% --i2t_batch=50% --t2i2t=off --t2i2t_batch=0 --i2t2i=off --i2t2i_batch=0

[both cycles]

[the same again]
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "base.cfg").write_text("# Tiny.\n" + "".join(f"--{name}={value}\n" for name, value in SIZES.items()))
    (tmp_path / "vqgan.cfg").write_text(VQGAN)
    path = tmp_path / "tiny.study"
    path.write_text(TEXT.format(base=tmp_path / "base.cfg", vqgan=tmp_path / "vqgan.cfg"))
    return path


def command(path, *flags):
    return [sys.executable, "-m", "tools.study", str(path), f"--output={path.parent / 'out'}", "--jobs=2",
            "--backend=cpu", *flags]  # fmt: skip


def call(path, *flags):
    found = subprocess.run(command(path, *flags), cwd=ROOT, capture_output=True, text=True)
    return found.returncode, found.stdout, found.stderr


def test_killed_in_the_middle(path):
    """With SIGKILL while it trains; the second call is left alone, and then there is nothing more to do."""
    out = path.parent / "out"
    code, said, _ = call(path, "--dry_run")
    assert code == 0 and not out.exists()
    assert "both cycles, seed 0: 60 steps\n" in said and "the same again, seed 0: the same as one above" in said
    assert "2 runs to do, 2 at a time; no line" in said
    with subprocess.Popen(command(path), cwd=ROOT) as first:
        while first.poll() is None and not list(out.glob("runs/*/checkpoints/step_*/commit.json")):
            time.sleep(0.05)
        assert first.poll() is None, "it ended before it was killed"
        first.kill()
    assert not study_results.read(str(out / "results.jsonl"))
    code, said, errors = call(path)
    assert code == 0, errors
    lines = study_results.read(str(out / "results.jsonl"))
    assert sorted(line["experiment"] for line in lines.values()) == ["both cycles", "pairs alone"]
    for line in lines.values():
        assert line["step"] == 60 and line["minutes"] > 0 and line["device"] == "cpu" and line["jobs"] == 2
        assert line["curves"]["captions_exact"][0] == line["curves"]["pictures_exact"][0] == [0, 30, 60]
        assert set(line["scores"]) == {"seen", "unpaired", "never"}
    assert any("goes on from step" in log.read_text() for log in out.glob("runs/*/log.txt"))
    assert len(list(out.glob("runs/*"))) == 2
    report = (out / "report.md").read_text()
    assert "## Tiny" in report and report.count("1 of 1") == 3 and (out / "plots" / "tiny_curves.png").exists()
    stamps = {log: log.stat().st_mtime_ns for log in out.glob("runs/*/log.txt")}
    code, said, _ = call(path, "--dry_run")
    assert code == 0 and "nothing to do" in said and "pairs alone, seed 0: done, step 60" in said
    # In another sitting, from the file of results alone.
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "results.jsonl").write_bytes((out / "results.jsonl").read_bytes())
    code, said, _ = call(path, f"--output={elsewhere}")
    assert code == 0 and (elsewhere / "report.md").read_text() == report and not (elsewhere / "runs").exists()
    assert stamps == {log: log.stat().st_mtime_ns for log in out.glob("runs/*/log.txt")}


def test_mistakes_are_one_line(path):
    path.write_text(path.read_text().replace("batch = 8", "batch = 7"))
    code, _, errors = call(path)
    assert code == 2 and len(errors.splitlines()) == 1 and not (path.parent / "out").exists()
    assert f"error: {path}: [pairs alone]: flags: --t2i_batch=50%: must be a whole number of batch = 7" in errors
    found = subprocess.run([sys.executable, "-m", "tools.study"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "no such study; launch/flagfiles/mini has " in found.stderr


def test_only_what_has_no_line_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = studies.read(tmp_path)
    two = study_file.read(studies.write(tmp_path, studies.TEXT.replace("seeds = 0, 1", "seeds = 1, 2"), "other"))
    todo = study.to_do([one, two], {one.digest(*one.runs[0]): {}})
    assert [(s.name, e.name, seed) for s, e, seed in todo.values()] == [
        ("some", "both cycles, pairs 30", 5), ("some", "both cycles, pairs 300", 5), ("other", "pairs alone", 1),
        ("other", "pairs alone", 2)]  # fmt: skip


def test_a_failed_run_is_told_and_the_report_is_made(path, tmp_path):
    """A picture tokenizer of other sizes than the base: both runs fail, each with its log."""
    base = tmp_path / "base.cfg"
    base.write_text(base.read_text().replace("codebook_size=40", "codebook_size=41"))
    code, said, errors = call(path)
    assert code == 1 and "2 runs failed:" in errors and errors.count("FAILED: ") == 2
    for log in (tmp_path / "out").glob("runs/*/log.txt"):
        assert str(log) in errors and re.search(r"--codebook_size=41 in .*base.cfg: .* has 40; ", log.read_text())
    assert "report: " in said and "exit code 2" in errors
