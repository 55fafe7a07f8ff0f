"""Pictures through a tokenizer and back: what is found, what is counted, and what is written."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from itit.checkpoint import weightsdir
from itit.config import VqganConfig
from itit.models import VQGAN
from tests.helpers.common import ROOT
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools import reconstruct
from tools.scoring import likeness

SIDE = 16
CONFIG = VqganConfig(image_size=SIDE, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=4,
                     codebook_size=40)  # fmt: skip


def draw(count):
    return np.random.default_rng().integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def write_pictures(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for n, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{n}.png")


def test_pictures_are_chosen_evenly():
    assert reconstruct.choose(list(range(10)), 3) == [0, 3, 6]
    assert reconstruct.choose([1, 2], 5) == [1, 2]


def test_scores_and_report():
    pictures = torch.from_numpy(draw(5))
    changed = (pictures.int() + torch.randint(-9, 10, pictures.shape)).clamp(0, 255).to(torch.uint8)
    ids = torch.tensor([[1, 1, 2, 7]] * 3 + [[1, 3, 3, 3]] * 2)
    scores = reconstruct.Scores(12)
    scores.add(["a", "b"], pictures[:2], changed[:2], ids[:2])
    scores.add(["c", "d", "e"], pictures[2:], changed[2:], ids[2:])
    report = scores.report()
    expected = likeness.psnr(pictures, changed)
    assert [p["name"] for p in scores.pictures] == list("abcde")
    assert [p["psnr"] for p in scores.pictures] == pytest.approx(expected.tolist())
    assert report["psnr_db"] == pytest.approx(expected.mean().item())
    assert report["ssim"] == pytest.approx(likeness.ssim(pictures, changed).mean().item())
    counts = {1: 8, 2: 3, 7: 3, 3: 6}
    entropy = -sum(n / 20 * math.log(n / 20) for n in counts.values())
    assert report["codes_used"] == 4 and report["code_usage"] == pytest.approx(4 / 12)
    assert report["perplexity"] == pytest.approx(math.exp(entropy)) and report["num_tokens"] == 20


def test_the_sheet_holds_every_pair():
    originals, results = draw(6), draw(6)
    shown = [(a, b, {"name": "x", "psnr": 10.0, "ssim": 0.5}) for a, b in zip(originals, results, strict=True)]
    rows = reconstruct.pairs(shown).rows
    assert [len(row) for row in rows] == [8, 4]
    panels = [panel for row in rows for panel in row]
    for n in range(6):
        for panel, pixels in zip(panels[2 * n : 2 * n + 2], (originals[n], results[n]), strict=True):
            np.testing.assert_array_equal(panel.picture, pixels)
    assert [panel.text for panel in panels[:2]] == ["x", "10.0 dB, SSIM 0.50"]


def test_the_command(tmp_path):
    model = VQGAN(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weightsdir.save(str(tmp_path / "vqgan"), model.state_dict(), CONFIG)
    pictures = draw(7)
    write_pictures(tmp_path / "in", pictures)
    command = [sys.executable, "-m", "tools.reconstruct", f"--vqgan={tmp_path}/vqgan", f"--input={tmp_path}/in",
               f"--output={tmp_path}/out", "--batch_size=3", "--num_shown=2"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "7 pictures, PSNR " in done.stdout and "reconstructing" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    pixels = torch.from_numpy(pictures)
    with torch.no_grad():
        ids = model.tokenize(pixels)
        result = model.to_pixels(ids)
    assert report["psnr_db"] == pytest.approx(likeness.psnr(pixels, result).mean().item(), abs=1e-3)
    assert report["codes_used"] == len(ids.unique()) and report["num_pictures"] == len(report["pictures"]) == 7
    page = np.asarray(Image.open(tmp_path / "out" / "reconstructions.png"))
    first = pictures[0].repeat(8, 0).repeat(8, 1)
    left = np.flatnonzero((page == first[0, 0]).all(-1).any(0))[0]
    assert any(np.array_equal(page[top : top + 128, left : left + 128], first) for top in range(len(page) - 127))
