"""Ready ids of another image tokenizer or vocabulary of equal sizes are refused; where nothing is known, nothing is."""

import json
import random

import google_crc32c
import pytest
import sentencepiece
import torch

from itit.checkpoint import weightsdir
from itit.config import VqganConfig
from itit.data import made_with
from itit.data.streams import Streams
from itit.models import VQGAN
from tests.data import test_streams
from tests.helpers.pictures import write_shards
from tools import tokenize, train_sentencepiece
from tools.data.tokenizing import Settings

CONFIG = VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, latent_dim=6,
                     codebook_size=24)  # fmt: skip
SIZES = dict(num_image_tokens=CONFIG.grid**2, codebook_size=24, num_text_tokens=8, vocab_size=200, bos_id=199)


def write_vqgan(folder):
    torch.seed()
    weightsdir.save(str(folder), VQGAN(CONFIG).state_dict(), CONFIG)
    return str(folder)


def write_vocabulary(path):
    words = ["".join(random.choices("abcdefgh", k=5)) for _ in range(200)]
    path.write_bytes(train_sentencepiece.train([" ".join(random.choices(words, k=6)) for _ in range(300)], 60))
    assert sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size() <= 60
    return str(path)


def pictures_of(pattern, **values):
    config = test_streams.make_config(image_data=pattern, **SIZES, t2i_batch=0, i2t_batch=0, i2i_batch=2, **values)
    return Streams(config)


def test_another_image_tokenizer(tmp_path):
    write_shards(tmp_path, [5, 4])
    ours, other = (write_vqgan(tmp_path / name) for name in ("ours", "other"))
    tokenize.run(f"{tmp_path}/raw-*", f"{tmp_path}/ids/a", Settings(ours, "", 8, keep=False, backend="cpu"))
    pattern = f"{tmp_path}/ids/a-*.tfrecord"
    for given in (ours, ""):
        assert pictures_of(pattern, vqgan=given).batch(0)["i2i/image_ids"].shape == (2, CONFIG.grid**2)
    # Written anew, as an export does, the same weights are the same file.
    weightsdir.save(str(tmp_path / "again"), weightsdir.load(ours, VqganConfig)[1], CONFIG)
    pictures_of(pattern, vqgan=str(tmp_path / "again"))
    with pytest.raises(ValueError) as refused:
        pictures_of(pattern, vqgan=other)
    message, record = str(refused.value), tmp_path / "ids" / "a-settings.json"
    then = json.loads(record.read_text())["vqgan"]
    assert then == google_crc32c.value((tmp_path / "ours" / "model.safetensors").read_bytes())
    assert "\n" not in message and message.startswith(f"--vqgan={other}: ")
    assert f"{record} says {then}" in message and "--image_data" in message
    record.write_text("{")
    with pytest.raises(ValueError, match="a-settings.json: not JSON"):
        pictures_of(pattern, vqgan=other)
    record.unlink()
    pictures_of(pattern, vqgan=other)


def test_another_vocabulary(tmp_path):
    ours, other = (write_vocabulary(tmp_path / f"{name}.model") for name in ("ours", "other"))
    names = [f"b-{i:05d}-of-00002.tfrecord" for i in range(2)]
    for name in names:
        test_streams.write(tmp_path / name, [test_streams.ids_record(n, image_ids=None) for n in range(6)])
    record = tmp_path / "b-settings.json"
    values = dict(text_data=f"{tmp_path}/b-*.tfrecord", t2i_batch=0, i2t_batch=0, t2t_batch=2, **SIZES)

    def texts(vocabulary):
        return Streams(test_streams.make_config(vocabulary=vocabulary, **values))

    texts(other)  # nothing is known
    record.write_text(json.dumps({"vocabulary": made_with.checksum(ours), "vqgan": 7}))
    texts(ours), texts("")
    with pytest.raises(ValueError, match=f"^--vocabulary={other}: not what the text_ids of --text_data were made with"):
        texts(other)
    record.write_text(json.dumps({"vocabulary": "", "vqgan": 7}))  # its texts were left as they were
    texts(other)


def test_raw_records_are_of_no_tokenizer(tmp_path):
    test_streams.write(tmp_path / "c-00000-of-00001.tfrecord", [test_streams.ids_record(n) for n in range(6)])
    (tmp_path / "c-settings.json").write_text(json.dumps({"vqgan": 7, "vocabulary": 8}))
    values = dict(t2i_batch=0, i2t_batch=0, t2t_batch=2, **SIZES | {"num_image_tokens": 4})
    vqgan = write_vqgan(tmp_path / "vqgan")
    # Texts alone are asked for; that the pictures beside them are of another tokenizer does not matter.
    Streams(test_streams.make_config(text_data=f"{tmp_path}/c-*.tfrecord", vqgan=vqgan, **values))


def test_a_part_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="none.model: no such file"):
        made_with.checksum(str(tmp_path / "none.model"))


def test_sets_that_are_not_whole_are_told(tmp_path, caplog):
    write_shards(tmp_path, [2, 1, 1])
    for number in range(3):
        (tmp_path / f"raw-{number}.tfrecord").rename(tmp_path / f"a-0000{number}-of-00003.tfrecord")
    ours = write_vqgan(tmp_path / "ours")
    (tmp_path / "a-00001-of-00003.tfrecord").rename(tmp_path / "b.tfrecord")
    pictures_of(f"{tmp_path}/*.tfrecord", vqgan=ours)
    assert f"--image_data: 2 of the 3 shards of {tmp_path}/a" in caplog.text
    caplog.clear()
    pictures_of(f"{tmp_path}/b.tfrecord", vqgan=ours)
    assert not caplog.records
    (tmp_path / made_with.WORK).mkdir()
    (tmp_path / made_with.WORK / made_with.BEGUN).write_text("{}")
    pictures_of(f"{tmp_path}/b.tfrecord", vqgan=ours)
    assert f"--image_data: {tmp_path} is not finished: repeat the tools.prepare that has begun it" in caplog.text
    with pytest.raises(ValueError, match=f"--input=.*: {tmp_path} is not finished"):
        tokenize.run(f"{tmp_path}/b.tfrecord", f"{tmp_path}/ids/a", Settings(ours, "", 8, backend="cpu"))
