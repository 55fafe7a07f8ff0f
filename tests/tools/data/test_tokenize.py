"""Ready ids: the same as a run makes of raw records by itself, and several views of a picture."""

import re

import numpy as np
import pytest
import torch

from itit import storage
from itit.backends.local import Local
from itit.checkpoint.weights import load_vqgan
from itit.config import DataConfig
from itit.data import records, shard_index
from itit.data.streams import Streams
from tests.core.test_storage import root  # noqa: F401 (a fixture)
from tests.data.test_streams import make_config
from tests.helpers.common import shared_data
from tests.helpers.flaky_storage import gcs  # noqa: F401 (a fixture)
from tests.tools.training.test_train_vqgan import CONFIG, read_shard, save_random_vqgan, write_shards
from tools import tokenize
from tools.data import tokenizing, views
from tools.data.tokenizing import Settings


def test_raw_and_ready_records_give_a_run_the_same_ids(tmp_path):
    pytest.importorskip("tensorflow_text")
    vocabulary = str(shared_data() / "t5" / "spiece.model")
    write_shards(tmp_path, [7, 5], text="A man riding a wave on top of a surfboard.")
    vqgan = save_random_vqgan(tmp_path / "vqgan")
    tokenize.run(f"{tmp_path}/raw-*", f"{tmp_path}/ids/part", Settings(vqgan, vocabulary, 16, keep=False))
    sizes = dict(num_image_tokens=CONFIG.grid**2, codebook_size=CONFIG.codebook_size, image_size=CONFIG.image_size,
                 num_text_tokens=16, vocab_size=32128, bos_id=32100, vocabulary=vocabulary)  # fmt: skip
    raw, ready = (Streams(make_config(paired_data=f"{tmp_path}/{pattern}", **sizes))
                  for pattern in ("raw-*", "ids/part-*.tfrecord"))  # fmt: skip
    model = load_vqgan(vqgan)
    for step in (0, int(np.random.default_rng().integers(1, 1000))):
        one, other = raw.batch(step), ready.batch(step)
        for task in ("t2i", "i2t"):
            ids = tokenizing.image_ids(model, torch.from_numpy(one[f"{task}/images"])).numpy()
            np.testing.assert_array_equal(ids, other[f"{task}/image_ids"])
            np.testing.assert_array_equal(one[f"{task}/text_ids"], other[f"{task}/text_ids"])


def test_a_record_becomes_one_a_view(tmp_path, monkeypatch):
    written = write_shards(tmp_path, [3, 2])
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")
    monkeypatch.setattr(tokenizing, "BATCH_SIZE", 8)
    tokenize.run(f"{tmp_path}/raw-*", prefix, Settings(vqgan, "", 8, keep=False, num_crops=3, flip=True, backend="cpu"))
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
        tokenize.run(f"{tmp_path}/raw-*", prefix, Settings(vqgan, "", 8, keep=False, flip=True))
    with pytest.raises(ValueError, match="--keep: not with --num_crops"):
        tokenize.run(f"{tmp_path}/raw-*", prefix, Settings(vqgan, "", 8, keep=True, flip=True))


def test_texts_stay_beside_every_view(tmp_path):
    """By a stand-in for the text tokenizer, which tells its texts by their lengths."""
    write_shards(tmp_path, [2], text="four")
    image = tokenizing.Pictures(save_random_vqgan(tmp_path / "vqgan"), Local("cpu"), num_crops=2)
    tokenizers = tokenizing.Tokenizers(image, lambda texts: np.array([[len(text)] for text in texts]))
    pairs = [(f"{tmp_path}/raw-0.tfrecord", f"{tmp_path}/out")]
    assert list(tokenizing.convert(Settings(), tokenizers, pairs)) == [{"records": 2, "cut": 0}]
    found = read_shard(f"{tmp_path}/out")
    assert [example["key"][0] for example in found] == [b"0/0#0", b"0/0#1", b"0/1#0", b"0/1#1"]
    assert all(example["text_ids"].tolist() == [4] for example in found)


def test_shards_are_those_of_a_plain_loop(tmp_path, root, monkeypatch):  # noqa: F811
    """Whatever the threads and the blocks, on a disk and on gs://; shards that end in mid-batch, one that is empty."""
    counts = [
        *np.random.default_rng().integers(1, 150, 2).tolist(),
        64,
        int(storage.is_remote(root)),
    ]  # no empty object
    (tmp_path / "raw").mkdir()
    written, vqgan = write_shards(tmp_path / "raw", counts), save_random_vqgan(tmp_path / "vqgan")
    model, start, expected = load_vqgan(vqgan), 0, []
    for count in counts:
        rows, start = written[start : start + count], start + count
        ids = [tokenizing.image_ids(model, torch.from_numpy(np.stack([pixels for pixels, _ in rows[at : at + 64]])))
               for at in range(0, count, 64)]  # fmt: skip
        expected.append([records.encode_example({"key": raw["key"], "image_ids": row.numpy()})
                         for (_, raw), row in zip(rows, torch.cat(ids) if ids else (), strict=True)])  # fmt: skip
    for path in (tmp_path / "raw").iterdir():
        storage.write_bytes(storage.join(root, "raw", path.name), path.read_bytes())
    monkeypatch.setattr(DataConfig, "block_bytes", int(np.random.default_rng().integers(1, 40000)))
    tokenize.run(storage.join(root, "raw", "raw-?.tfrecord"), storage.join(root, "ids", "part"),
                 Settings(vqgan, backend="cpu", num_workers=int(np.random.default_rng().integers(1, 6))))  # fmt: skip
    for shard, payloads in enumerate(expected):
        path = storage.join(root, "ids", f"part-{shard:05d}-of-00004.tfrecord")
        assert [records.read(path, *span) for span in records.index(path).tolist()] == payloads
        np.testing.assert_array_equal(shard_index.read(path), records.index(path))


def test_a_record_without_an_id_has_no_views(tmp_path):
    ((_, raw),) = write_shards(tmp_path, [1])
    path = str(tmp_path / "raw-0.tfrecord")
    with records.RecordWriter(path) as writer:
        writer.write(records.encode_example({"image": raw["image"]}))
    vqgan = save_random_vqgan(tmp_path / "vqgan")
    tokenize.run(path, f"{tmp_path}/one/part", Settings(vqgan, "", 8, keep=False))
    assert set(read_shard(f"{tmp_path}/one/part-00000-of-00001.tfrecord")[0]) == {"image_ids"}
    with pytest.raises(records.BadRecord, match=re.escape(f"{path}@0: no 'key' to name its views by")):
        tokenize.run(path, f"{tmp_path}/two/part", Settings(vqgan, "", 8, keep=False, flip=True))


def test_shards_are_of_the_settings_beside_them(tmp_path):
    (tmp_path / "x").write_bytes(b"no record")
    write_shards(tmp_path, [2])
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")

    def make(pattern, **changes):
        tokenize.run(f"{tmp_path}/{pattern}", prefix, Settings(vqgan, "", 8, backend="cpu", **changes))

    with pytest.raises(records.BadRecord):
        make("x")
    make("raw-*")  # nothing was made of the other
    write_shards(tmp_path, [3])
    with pytest.raises(ValueError, match="part-settings.json: --input_bytes was .*; name another --output"):
        make("raw-*")
    storage.remove_tree(f"{prefix}-settings.json")
    with pytest.raises(ValueError, match="there are shards, and no .*part-settings.json that says what they were made"):
        make("raw-*")


def test_a_shard_is_never_without_its_index(tmp_path, monkeypatch):
    write_shards(tmp_path, [3, 2])
    vqgan, prefix = save_random_vqgan(tmp_path / "vqgan"), str(tmp_path / "out" / "part")
    paths = [f"{prefix}-0000{i}-of-00002.tfrecord" for i in range(2)]

    def make():
        tokenize.run(f"{tmp_path}/raw-*", prefix, Settings(vqgan, "", 8, keep=False, backend="cpu"))

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
