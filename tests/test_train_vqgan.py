"""Training the image tokenizer, and turning records into ids with it."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from itit import checkpoint, weightsdir
from itit.config import VqganConfig
from itit.data import records, scenes
from itit.models.vqgan import VQGAN
from tests.common import ROOT, shared_data
from tools import tokenize, train_vqgan

CONFIG = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=6,
                     codebook_size=24)  # fmt: skip
FLAGS = ["--image_size=16", "--channels=8", "--channel_multipliers=1,1,2", "--num_res_blocks=1", "--latent_dim=6",
         "--codebook_size=24", "--num_steps=45", "--batch_size=4", "--seed=3"]  # fmt: skip


def write_shards(folder, counts, text=None):
    """Shards of small pictures with keys; returns all features in order."""
    rng, written = np.random.default_rng(), []
    for shard, count in enumerate(counts):
        with records.RecordWriter(str(folder / f"raw-{shard}.tfrecord")) as writer:
            for number in range(count):
                data = io.BytesIO()
                picture = scenes.render(scenes.sample(rng, False), rng)[::4, ::4]
                Image.fromarray(np.ascontiguousarray(picture)).save(data, "PNG")
                features = {"key": f"{shard}/{number}", "image": data.getvalue()} | ({"text": text} if text else {})
                writer.write(records.encode_example(features))
                written.append((picture, features))
    return written


def read_shard(path):
    return [records.decode_example(records.read(path, *span)) for span in records.index(path).tolist()]


def batches(count):
    rng = np.random.default_rng(0)
    pictures = np.stack([scenes.render(scenes.sample(rng, False), rng)[::4, ::4] for _ in range(64)])
    return [torch.from_numpy(pictures[rng.integers(0, 64, 8)]) for _ in range(count)]


def test_loss_falls_and_most_codes_are_used():
    trainer = train_vqgan.Trainer(CONFIG, 120, 3e-3, 0, torch.device("cpu"))
    values = [trainer.step(pixels, step) for step, pixels in enumerate(batches(120))]
    l2 = [value["loss/l2"].item() for value in values]
    assert np.mean(l2[-10:]) < 0.3 * np.mean(l2[:5])
    assert values[-1]["codes/used"] > 8
    assert 4 < values[-1]["codes/perplexity"] <= 24


def test_averages_follow_numpy():
    model = VQGAN(CONFIG)
    averages = train_vqgan.CodeAverages(model)
    count, total = np.zeros(24), np.zeros((24, 6))
    for _ in range(3):
        outputs, ids = torch.randn(40, 6), torch.randint(0, 20, (40,))
        averages.update(outputs, ids)
        for code in range(24):
            mine = outputs[ids == code].numpy()
            count[code] = 0.99 * count[code] + 0.01 * len(mine)
            total[code] = 0.99 * total[code] + 0.01 * mine.sum(0)
    used = count > 0
    np.testing.assert_allclose(model.codebook.weight.numpy()[used], total[used] / count[used, None], rtol=1e-4)
    assert set(averages.dead().tolist()) == set(np.flatnonzero(~used))
    share = count[used] / count.sum()
    assert averages.perplexity().item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_new_codes_lie_on_outputs_that_no_code_is_near():
    model = VQGAN(CONFIG)
    averages = train_vqgan.CodeAverages(model)
    common, rare = torch.randn(6), torch.randn(3, 6) * 5
    outputs = torch.cat([common.repeat(500, 1), rare])
    model.codebook.weight[:] = common
    averages.draw(outputs, torch.tensor([2, 7, 11]), torch.Generator().manual_seed(1))
    found = {tuple(row) for row in model.codebook.weight[[2, 7, 11]].tolist()}
    assert found == {tuple(row) for row in rare.tolist()}
    assert torch.equal(model.codebook.weight[3], common)


def test_gradient_passes_straight_through_and_spares_the_codebook():
    trainer = train_vqgan.Trainer(CONFIG, 100, 0.0, 0, torch.device("cpu"))
    model, pixels = trainer.model, batches(1)[0]
    rounding = int(100 * train_vqgan.PLAIN_SHARE)
    trainer.step(pixels, rounding)
    before = copy.deepcopy(model)
    trainer.step(pixels, rounding + 1)
    assert model.codebook.weight.grad is None
    images = before.from_pixels(pixels)
    features = before.encoder(images)
    _, codes = before.quantize(features.detach())
    leaf = codes.clone().requires_grad_()
    result = before.decoder(leaf)
    loss = (result - images).square().mean() + train_vqgan.L1_WEIGHT * (result - images).abs().mean()
    (through,) = torch.autograd.grad(loss, leaf)
    through = through + 0.25 * 2 * (features - codes).detach() / features.numel()
    (want,) = torch.autograd.grad(features, before.encoder.conv_in.weight, through)
    torch.testing.assert_close(model.encoder.conv_in.weight.grad, want)


def command(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True)


def main_in_process(monkeypatch, data, output, steps=None):
    """The tool's own path, without a second interpreter; `steps` simulates a kill after so many."""
    trainer = train_vqgan.Trainer(CONFIG, 45, 2e-3, 3, torch.device("cpu"))
    pictures = train_vqgan.Pictures(data, 16, 3)
    if steps is not None:
        step = trainer.step
        monkeypatch.setattr(trainer, "step", lambda pixels, at: step(pixels, at) if at < steps else exit_now())
    train_vqgan.train(trainer, pictures, 4, 45, str(output), {"seed": 3})
    return trainer, pictures


def exit_now():
    raise KeyboardInterrupt


def test_killed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    write_shards(tmp_path, [9, 4])
    data = str(tmp_path / "raw-*")
    monkeypatch.setattr(train_vqgan, "CHECKPOINT_EVERY", 10)
    whole, _ = main_in_process(monkeypatch, data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        main_in_process(monkeypatch, data, tmp_path / "killed", steps=27)
    assert checkpoint.latest_step(str(tmp_path / "killed")) == 20
    resumed, _ = main_in_process(monkeypatch, data, tmp_path / "killed")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    with pytest.raises(ValueError, match="--seed=4: the run in .* began with 3"):
        train_vqgan.train(resumed, None, 4, 45, str(tmp_path / "killed"), {"seed": 4})


def test_pictures_are_the_same_streamed_as_in_memory(tmp_path, monkeypatch):
    written = write_shards(tmp_path, [5, 6])
    in_memory = train_vqgan.Pictures(str(tmp_path / "raw-*"), 16, 7)
    monkeypatch.setattr(train_vqgan, "MAX_BYTES_IN_MEMORY", 0)
    streamed = train_vqgan.Pictures(str(tmp_path / "raw-*"), 16, 7)
    seen = torch.cat([in_memory.batch(step, 4) for step in range(11)])
    assert torch.equal(seen, torch.cat([streamed.batch(step, 4) for step in range(11)]))
    want = sorted(picture.tobytes() for picture, _ in written)
    assert sorted(picture.numpy().tobytes() for picture in seen[:11]) == want


def test_tools_end_to_end(tmp_path):
    written = write_shards(tmp_path, [5, 3])
    data, output = str(tmp_path / "raw-*"), str(tmp_path / "vqgan")
    done = command("tools.train_vqgan", f"--data={data}", f"--output={output}", *FLAGS)
    assert done.returncode == 0 and "PSNR" in done.stdout, done.stderr
    config, weights = weightsdir.load(output, VqganConfig)
    assert config == CONFIG
    assert Image.open(f"{output}/reconstructions.png").size == (8 * 16, 2 * 16)
    model = VQGAN(config)
    model.load_state_dict(weights)

    prefix = str(tmp_path / "ids" / "part")
    tokenize.run(data, prefix, output, "", 8, keep=False)
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
    tokenize.run(raw, prefix, vqgan, "", 8, keep=True)
    assert set(read_shard(prefix + "-00001-of-00002.tfrecord")[0]) == {"key", "image", "image_ids", "text"}
    first, second = (tmp_path / "out" / f"part-0000{i}-of-00002.tfrecord" for i in range(2))
    before, stamp = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    tokenize.run(raw, prefix, vqgan, "", 8, keep=True)
    assert "1 of 2 shards are already there" in capsys.readouterr().out
    assert second.read_bytes() == before and first.stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="--keep was True, is now False"):
        tokenize.run(raw, prefix, vqgan, "", 8, keep=False)


def test_texts_become_the_genuine_t5_ids(tmp_path):
    pytest.importorskip("tensorflow_text")
    vocabulary = shared_data() / "t5" / "spiece.model"
    write_shards(tmp_path, [2], text="A man riding a wave on top of a surfboard.")
    prefix = str(tmp_path / "out" / "part")
    tokenize.run(str(tmp_path / "raw-*"), prefix, "", str(vocabulary), 16, keep=False)
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
        tokenize.run(str(path), str(prefix), vqgan, "", 8, keep=False)
    assert [p.name for p in prefix.parent.iterdir()] == ["part-settings.json"]
    with pytest.raises(records.BadRecord, match=f"raw-0.tfrecord@{offset}"):
        train_vqgan.Pictures(str(path), 16, 0)


def test_errors_are_one_line(tmp_path):
    done = command("tools.tokenize", f"--input={tmp_path}/none*", f"--output={tmp_path}/x", f"--vqgan={tmp_path}")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    write_shards(tmp_path, [1])
    with pytest.raises(ValueError, match="--vqgan and --vocabulary are both missing"):
        tokenize.run(str(tmp_path / "raw-*"), str(tmp_path / "x"), "", "", 8, keep=False)
    with pytest.raises(ValueError, match="no 'text'"):
        vocabulary = tmp_path / "model"
        vocabulary.write_bytes(b"")
        tokenize.convert(str(tmp_path / "raw-0.tfrecord"), str(tmp_path / "y"), {"text": ("text_ids", None, None)},
                         False, None)  # fmt: skip
