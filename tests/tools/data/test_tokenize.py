"""Ready ids: the same as a run makes of raw records by itself, and several views of a picture."""

import re

import numpy as np
import pytest
import torch

from itit import storage
from itit.backends.local import Local
from itit.checkpoint.weights import load_vqgan
from itit.data import records, shard_index
from itit.data.streams import Streams
from tests.data.test_streams import make_config
from tests.helpers.common import shared_data
from tests.tools.training.test_train_vqgan import CONFIG, read_shard, save_random_vqgan, write_shards
from tools import tokenize
from tools.data import views


def test_raw_and_ready_records_give_a_run_the_same_ids(tmp_path):
    pytest.importorskip("tensorflow_text")
    vocabulary = str(shared_data() / "t5" / "spiece.model")
    write_shards(tmp_path, [7, 5], text="A man riding a wave on top of a surfboard.")
    vqgan = save_random_vqgan(tmp_path / "vqgan")
    tokenize.run(f"{tmp_path}/raw-*", f"{tmp_path}/ids/part", vqgan, vocabulary, 16, keep=False)
    sizes = dict(num_image_tokens=CONFIG.grid**2, codebook_size=CONFIG.codebook_size, image_size=CONFIG.image_size,
                 num_text_tokens=16, vocab_size=32128, bos_id=32100, vocabulary=vocabulary)  # fmt: skip
    raw, ready = (Streams(make_config(paired_data=f"{tmp_path}/{pattern}", **sizes))
                  for pattern in ("raw-*", "ids/part-*.tfrecord"))  # fmt: skip
    model = load_vqgan(vqgan)
    for step in (0, int(np.random.default_rng().integers(1, 1000))):
        one, other = raw.batch(step), ready.batch(step)
        for task in ("t2i", "i2t"):
            ids = tokenize.image_ids(model, torch.from_numpy(one[f"{task}/images"])).numpy()
            np.testing.assert_array_equal(ids, other[f"{task}/image_ids"])
            np.testing.assert_array_equal(one[f"{task}/text_ids"], other[f"{task}/text_ids"])


def test_a_record_becomes_one_a_view(tmp_path, monkeypatch):
    written = write_shards(tmp_path, [3, 2])
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")
    monkeypatch.setattr(tokenize, "BATCH_SIZE", 4)
    tokenize.run(f"{tmp_path}/raw-*", prefix, vqgan, "", 8, keep=False, num_crops=3, flip=True, backend="cpu")
    paths = [f"{prefix}-0000{i}-of-00002.tfrecord" for i in range(2)]
    found, model = sum(map(read_shard, paths), []), load_vqgan(vqgan)
    assert len(found) == 5 * 6
    for number, (_, raw) in enumerate(written):
        pixels = views.views(raw["image"], raw["key"].encode(), 16, 10**6, 3, True)
        for view, example in enumerate(found[6 * number : 6 * number + 6]):
            assert example["key"] == [f"{raw['key']}#{view}".encode()] and set(example) == {"key", "image_ids"}
            np.testing.assert_array_equal(
                example["image_ids"], model.tokenize(torch.from_numpy(pixels[view].copy())[None])[0]
            )
    for path in paths:
        np.testing.assert_array_equal(shard_index.read(path), records.index(path))
    with pytest.raises(ValueError, match="--num_crops was 3, is now 1"):
        tokenize.run(f"{tmp_path}/raw-*", prefix, vqgan, "", 8, keep=False, flip=True)
    with pytest.raises(ValueError, match="--keep: not with --num_crops"):
        tokenize.run(f"{tmp_path}/raw-*", prefix, vqgan, "", 8, keep=True, flip=True)


def test_texts_stay_beside_every_view(tmp_path):
    """By a stand-in for the text tokenizer, which tells its texts by their lengths."""
    write_shards(tmp_path, [2], text="four")
    image = tokenize.ImageTokenizer(save_random_vqgan(tmp_path / "vqgan"), Local("cpu"), num_crops=2)
    count = lambda texts: np.array([[len(text)] for text in texts])  # noqa: E731
    tokenizers = {"image": ("image_ids", image.decode, image), "text": ("text_ids", lambda d, _: [d.decode()], count)}
    bar = type("Bar", (), {"update": lambda self, count: None})()
    tokenize.convert(f"{tmp_path}/raw-0.tfrecord", f"{tmp_path}/out", tokenizers, False, bar)
    found = read_shard(f"{tmp_path}/out")
    assert [example["key"][0] for example in found] == [b"0/0#0", b"0/0#1", b"0/1#0", b"0/1#1"]
    assert all(example["text_ids"].tolist() == [4] for example in found)


def test_a_record_without_an_id_has_no_views(tmp_path):
    ((_, raw),) = write_shards(tmp_path, [1])
    path = str(tmp_path / "raw-0.tfrecord")
    with records.RecordWriter(path) as writer:
        writer.write(records.encode_example({"image": raw["image"]}))
    vqgan = save_random_vqgan(tmp_path / "vqgan")
    tokenize.run(path, f"{tmp_path}/one/part", vqgan, "", 8, keep=False)
    assert set(read_shard(f"{tmp_path}/one/part-00000-of-00001.tfrecord")[0]) == {"image_ids"}
    with pytest.raises(records.BadRecord, match=re.escape(f"{path}@0: no 'key' to name its views by")):
        tokenize.run(path, f"{tmp_path}/two/part", vqgan, "", 8, keep=False, flip=True)


def test_a_shard_is_never_without_its_index(tmp_path, monkeypatch):
    write_shards(tmp_path, [3, 2])
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")
    paths = [f"{prefix}-0000{i}-of-00002.tfrecord" for i in range(2)]

    def make():
        tokenize.run(f"{tmp_path}/raw-*", prefix, vqgan, "", 8, keep=False, backend="cpu")

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shard_index, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        make()
    assert not [path for path in paths if storage.exists(path)]
    make()
    # As an earlier version, killed between the two, left it; and what a killed process was writing.
    storage.remove_tree(shard_index.path_of(paths[1]))
    (tmp_path / "out" / ".part-settings.json.tmp-1").write_bytes(b"")
    make()
    for path in paths:
        np.testing.assert_array_equal(shard_index.read(path), records.index(path))
    names = {name.rpartition("/")[2] for path in paths for name in (path, shard_index.path_of(path))}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"part-settings.json"}
