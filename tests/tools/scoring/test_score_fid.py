"""`python -m tools.score_fid` as a user calls it."""

import json
import subprocess
import sys

import numpy as np
from PIL import Image

from tests.helpers.common import ROOT, squeezenet
from tools.scoring import frechet


def test_refuses_marks_and_saves(tmp_path):
    draw = np.random.default_rng()
    for name, count in (("made", 10), ("real", 7)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.fromarray(draw.integers(256, size=(48, 64, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    command = [sys.executable, "-m", "tools.score_fid", f"--pictures={tmp_path / 'made'}", f"--features={squeezenet()}",
               "--image_size=64", "--backend=cpu", f"--reference={tmp_path / 'real'}"]  # fmt: skip
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: 10 pictures (made): below 2048")
    (tmp_path / "real" / "bad.png").write_bytes(b"")
    refused = subprocess.run([*command, "--force"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "error: bad.png: not a picture" in refused.stderr.splitlines()[-1]
    command += ["--force", "--max_bad_records=1", f"--save={tmp_path / 'made.npz'}", f"--json={tmp_path / 'out.json'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["frechet_squeezenet"] > 0 and result["too_few_pictures"] and "FID" not in result
    assert result["num_reference"] == 7 and result["reference"]["damaged"] == 1
    assert "1 damaged left out" in done.stdout and "TOO FEW" in done.stdout and "FID" not in done.stdout
    assert frechet.read(str(tmp_path / "made.npz")).count == 10
