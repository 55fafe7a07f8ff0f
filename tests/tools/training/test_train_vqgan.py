"""Training the image tokenizer, and turning records into ids with it."""

import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from itit import sheets
from itit.checkpoint import store, weightsdir
from itit.config import TrainConfig, VqganConfig
from itit.data import records
from itit.models.vqgan import VQGAN
from itit.training import metrics
from tests.helpers.common import ROOT, shared_data
from tests.helpers.pictures import write_shards
from tools import tokenize, train_vqgan
from tools.data import tokenizing
from tools.data.tokenizing import Settings
from tools.training import vqgan_step

pytestmark = pytest.mark.usefixtures("kept_signals")

CONFIG = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=6,
                     codebook_size=24)  # fmt: skip
RECIPE = vqgan_step.Recipe(num_steps=45, batch_size=4)
FULL = dataclasses.replace(RECIPE, adversarial_weight=0.1, adversarial_start=15, discriminator_channels=2, r1_every=2,
                           ema_decay=0.9)  # fmt: skip
FLAGS = ["--image_size=16", "--channels=8", "--channel_multipliers=1,1,2", "--num_res_blocks=1", "--latent_dim=6",
         "--codebook_size=24", "--num_steps=45", "--batch_size=4", "--seed=3"]  # fmt: skip


def read_shard(path):
    return [records.decode_example(records.read(path, *span)) for span in records.index(path).tolist()]


def command(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


def train_here(data, output, recipe=RECIPE, seed=3, **run):
    """The tool's own path, without a second interpreter."""
    run = {"sample_every": 20, "checkpoint_every": 10} | run
    settings = TrainConfig(workdir=str(output), backend="cpu", seed=seed, num_samples=3, log_every=15, **run)
    return train_vqgan.train(CONFIG, recipe, train_vqgan.Data(data=data), settings, {"seed": seed})


@pytest.mark.parametrize("recipe", [RECIPE, FULL], ids=["plain", "full"])
def test_killed_run_ends_with_the_same_weights(tmp_path, monkeypatch, recipe):
    """Killed between two checkpoints, before and after rounding and the discriminator set in."""
    write_shards(tmp_path, [9, 4])
    data = str(tmp_path / "raw-*")
    assert train_here(data, tmp_path / "whole", recipe) == 0
    step = vqgan_step.step
    for at in (7, 17, 33):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(vqgan_step, "step", lambda state, pixels, number, *rest, at=at: exit_now()
                          if number == at else step(state, pixels, number, *rest))  # fmt: skip
            train_here(data, tmp_path / "killed", recipe)
        assert store.latest_step(str(tmp_path / "killed")) == (at // 10 * 10 or None)
    assert train_here(data, tmp_path / "killed", recipe) == 0
    ends = [store.restore(str(tmp_path / name))[1] for name in ("whole", "killed")]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    parts = {name.partition("/")[0] for name in ends[0]}
    assert parts == {"model", "codes", "optimizer"} | ({"discriminator_optimizer", "ema"} if recipe is FULL else set())
    weights = weightsdir.load(str(tmp_path / "whole"), VqganConfig)[1]
    source = "ema" if recipe is FULL else "model"
    assert torch.equal(weights["decoder.conv_out.weight"], ends[0][f"{source}/vqgan.decoder.conv_out.weight"])
    with pytest.raises(ValueError, match="--seed=4: the run in .* began with 3"):
        train_here(data, tmp_path / "killed", recipe, seed=4)


def exit_now():
    raise KeyboardInterrupt


def test_held_out_pictures_are_shown_and_scored(tmp_path, capsys):
    written = write_shards(tmp_path, [9])
    (tmp_path / "held").mkdir()
    held = write_shards(tmp_path / "held", [5])
    data = train_vqgan.Data(data=str(tmp_path / "raw-*"), eval_data=str(tmp_path / "held" / "raw-*"))
    recipe = dataclasses.replace(RECIPE, num_steps=4)
    run = TrainConfig(workdir=str(tmp_path / "out"), backend="cpu", num_samples=3, log_every=2, sample_every=2,
                      checkpoint_every=4)  # fmt: skip
    assert train_vqgan.train(CONFIG, recipe, data, run, {}) == 0
    config, weights = weightsdir.load(str(tmp_path / "out"), VqganConfig)
    model = VQGAN(config)
    model.load_state_dict(weights)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack([picture for picture, _ in held]))
        drawn = model.to_pixels(model.tokenize(pixels))
    shown = np.asarray(Image.open(tmp_path / "out" / "reconstructions.png"))
    sections = {"pictures": [picture for picture, _ in held[:3]], "what their codes give": drawn[:3].numpy()}
    page = sheets.draw([sheets.Section(title, [list(map(sheets.Panel, row))]) for title, row in sections.items()])
    assert np.array_equal(shown, page)
    error = ((pixels.double() - drawn.double()) ** 2).mean().item()
    expected = 10 * np.log10(255**2 / error)
    steps, values = metrics.curves(str(tmp_path / "out"))["eval/psnr"]
    assert steps == [2, 4] and values[-1] == pytest.approx(expected, abs=1e-3)
    printed = capsys.readouterr().out
    assert f"PSNR {expected:.1f} dB of 5 pictures" in printed
    used = re.search(r"(\d+) of 24 codes used in (\d+) tokens of training pictures", printed)
    with torch.no_grad():
        ids = model.tokenize(torch.from_numpy(np.stack([picture for picture, _ in written])))
    assert int(used[1]) == len(ids.unique()) and int(used[2]) >= 32 * 24


def test_tools_end_to_end(tmp_path):
    written = write_shards(tmp_path, [5, 3])
    data, output = str(tmp_path / "raw-*"), str(tmp_path / "vqgan")
    done = command("tools.train_vqgan", f"--data={data}", f"--output={output}", *FLAGS)
    assert done.returncode == 0 and "PSNR" in done.stdout, done.stderr
    config, weights = weightsdir.load(output, VqganConfig)
    assert config == CONFIG
    assert Image.open(f"{output}/reconstructions.png").width > 8 * sheets.SIDE
    model = VQGAN(config)
    model.load_state_dict(weights)

    prefix = str(tmp_path / "ids" / "part")
    tokenize.run(data, prefix, Settings(output, "", 8, keep=False))
    found = read_shard(prefix + "-00000-of-00002.tfrecord") + read_shard(prefix + "-00001-of-00002.tfrecord")
    assert len(found) == len(written)
    for features, (picture, raw) in zip(found, written, strict=True):
        assert set(features) == {"key", "image_ids"} and features["key"] == [raw["key"].encode()]
        ids = model.tokenize(torch.from_numpy(picture.copy())[None])[0]
        assert np.array_equal(features["image_ids"], ids.numpy())


def save_random_vqgan(folder):
    weightsdir.save(str(folder), VQGAN(CONFIG).state_dict(), CONFIG)
    return str(folder)


def test_tokenize_does_only_what_is_missing(tmp_path, capsys):
    write_shards(tmp_path, [3, 2], text="a red circle")
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")
    raw = str(tmp_path / "raw-*")
    tokenize.run(raw, prefix, Settings(vqgan, "", 8, keep=True))
    assert set(read_shard(prefix + "-00001-of-00002.tfrecord")[0]) == {"key", "image", "image_ids", "text"}
    first, second = (tmp_path / "out" / f"part-0000{i}-of-00002.tfrecord" for i in range(2))
    before, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    tokenize.run(raw, prefix, Settings(vqgan, "", 8, keep=True))
    assert "already there: 1 of 2 shards" in capsys.readouterr().out
    assert second.read_bytes() == before and first.stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="--keep was True, is now False"):
        tokenize.run(raw, prefix, Settings(vqgan, "", 8, keep=False))


def test_texts_become_the_genuine_t5_ids(tmp_path):
    pytest.importorskip("tensorflow_text")
    vocabulary = shared_data() / "t5" / "spiece.model"
    write_shards(tmp_path, [2], text="A man riding a wave on top of a surfboard.")
    prefix = str(tmp_path / "out" / "part")
    tokenize.run(str(tmp_path / "raw-*"), prefix, Settings("", str(vocabulary), 16, keep=False))
    want = [71, 388, 7494, 3, 9, 6772, 30, 420, 13, 3, 9, 12245, 1976, 5, 1, 0]
    for features in read_shard(prefix + "-00000-of-00001.tfrecord"):
        assert set(features) == {"key", "image", "text_ids"} and features["text_ids"].tolist() == want


def test_a_damaged_record_is_named_and_leaves_no_shard(tmp_path):
    write_shards(tmp_path, [3])
    path = tmp_path / "raw-0.tfrecord"
    data = bytearray(path.read_bytes())
    offset = int(records.index(str(path))[1, 0])
    data[offset + 40] ^= 4
    path.write_bytes(data)
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), tmp_path / "out" / "part"
    with pytest.raises(records.BadRecord, match=f"raw-0.tfrecord@{offset}"):
        tokenize.run(str(path), str(prefix), Settings(vqgan, "", 8, keep=False))
    assert [p.name for p in prefix.parent.iterdir()] == ["part-settings.json"]


def test_errors_are_one_line(tmp_path):
    done = command("tools.tokenize", f"--input={tmp_path}/none*", f"--output={tmp_path}/x", f"--vqgan={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match="--vqgan and --vocabulary are both missing"):
        tokenize.run(str(tmp_path / "raw-*"), str(tmp_path / "x"), Settings("", "", 8, keep=False))
    with pytest.raises(ValueError, match="no 'text'"):
        pairs = [(str(tmp_path / "raw-0.tfrecord"), str(tmp_path / "y"))]
        list(tokenizing.convert(Settings(), tokenizing.Tokenizers(text=len), pairs))
