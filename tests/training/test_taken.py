"""Values that follow from files: taken where nobody gave them, refused where they differ, whatever file says so."""

import dataclasses
import random

import numpy as np
import pytest
from absl import logging

from itit import flags
from itit.checkpoint import store, weightsdir
from itit.config import Config, T5Config, VqganConfig, replace, to_json, values_of
from itit.data.records import RecordWriter, encode_example
from itit.training import runs, taken
from tools import train_sentencepiece

WORDS = ["a red ball", "two green boxes", "one small cross"]
OPEN = replace(Config(), preset="nano", t5_size="nano")


@pytest.fixture
def files(tmp_path):
    """(Settings that name files of random sizes, the values that these say)."""
    grid, patch, codes = random.randrange(2, 6), random.randrange(2, 5), random.randrange(30, 99)
    vqgan = VqganConfig(image_size=grid * patch, patch_size=patch, channel_multipliers=(1,), codebook_size=codes)
    (tmp_path / "vqgan").mkdir()
    (tmp_path / "vqgan" / weightsdir.CONFIG).write_text(to_json(vqgan))
    model = train_sentencepiece.train(WORDS, 40)
    (tmp_path / "words.model").write_bytes(model)
    length = random.randrange(4, 20)
    write_ids(tmp_path / "texts.tfrecord", text_ids=length)
    values = {"vqgan": str(tmp_path / "vqgan"), "vocabulary": str(tmp_path / "words.model"),
              "text_data": str(tmp_path / "texts.tfrecord"), "num_decode_steps": 1}  # fmt: skip
    said = {"image_size": grid * patch, "num_image_tokens": grid**2, "codebook_size": codes,
            "num_text_tokens": length, "vocab_size": 64, "bos_id": 63}  # fmt: skip
    return values, said


def write_ids(path, **lengths):
    """Three records, of which the first is damaged: its ids are too many."""
    with RecordWriter(str(path)) as writer:
        for more in (1, 0, 0):
            writer.write(encode_example({name: np.ones(count + more, np.int64) for name, count in lengths.items()}))


def of(config):
    return {name: value for name, value in values_of(config).items() if name in taken.TAKEN}


def test_what_nobody_gave_is_taken_and_said(files, caplog):
    values, said = files
    caplog.set_level(logging.INFO)
    config = taken.settle(replace(OPEN, **values))
    assert of(config) == said and config == config.resolve()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[0] for line in lines] == [
        f"taken from {values['vqgan']}/config.json", f"taken from the text_ids of --text_data ({values['text_data']})",
        f"taken from {values['vocabulary']}",
    ]  # fmt: skip
    assert f": --image_size={said['image_size']} --num_image_tokens={said['num_image_tokens']} " in lines[0]
    caplog.clear()
    assert taken.settle(config) == config and not caplog.records


def test_what_is_given_and_differs_names_both_values_and_places(files):
    values, said = files
    for name in ("image_size", "num_image_tokens", "codebook_size"):
        given = replace(OPEN, **values, **{name: said[name] + 1})
        expected = f"{values['vqgan']}/config.json has {said[name]}; what is not given is taken from there"
        with pytest.raises(ValueError) as error:
            taken.settle(given)
        assert str(error.value) == f"--{name}={said[name] + 1}: {expected}"
        with pytest.raises(ValueError) as error:
            taken.settle(given, {name: "some.cfg", "seed": "other.cfg"})
        assert str(error.value) == f"--{name}={said[name] + 1} in some.cfg: {expected}"


def test_pieces_are_rows_and_the_first_input_is_none_of_them(files):
    values, _ = files
    pieces = train_sentencepiece.sentencepiece.SentencePieceProcessor(model_file=values["vocabulary"]).get_piece_size()
    exact = taken.settle(replace(OPEN, **values, vocab_size=pieces + 1)).model
    assert (exact.vocab_size, exact.bos_id) == (pieces + 1, pieces)
    assert taken.settle(replace(OPEN, **values, vocab_size=99, bos_id=pieces)).model.bos_id == pieces
    for given, name in (({"vocab_size": pieces}, "vocab_size"), ({"bos_id": pieces - 1}, "bos_id")):
        with pytest.raises(ValueError, match=f"^--{name}={given[name]}: must be at least {given[name] + 1}, for the "
                                             f"{pieces} pieces of .*words.model$"):  # fmt: skip
            taken.settle(replace(OPEN, **values, **given))
    with pytest.raises(ValueError, match="^--vocabulary=absent.model: No such file"):
        taken.settle(replace(OPEN, vocabulary="absent.model"))


def test_a_text_encoder_says_its_sizes_and_its_rows(files, tmp_path):
    values, _ = files
    t5 = T5Config(size="nano", dim=48, head_dim=8, ff_dim=32, num_layers=1, num_heads=2, vocab_size=77)
    (tmp_path / weightsdir.CONFIG).write_text(to_json(t5))
    values = values | {"t5_weights": str(tmp_path), "t5_seed": 5}
    config = taken.settle(replace(OPEN, **values))
    assert config.t5 == dataclasses.replace(t5, weights=str(tmp_path), seed=5)
    assert (config.model.text_feature_dim, config.model.vocab_size, config.model.bos_id) == (48, 77, 76)
    with pytest.raises(ValueError, match=r"^--vocab_size=64: .*config.json has 77"):
        taken.settle(replace(OPEN, **values, vocab_size=64))


def test_lengths_of_ready_ids_of_what_is_trained_on(tmp_path):
    write_ids(tmp_path / "pairs", image_ids=9, text_ids=7)
    write_ids(tmp_path / "texts", text_ids=11)
    (tmp_path / "damaged").write_bytes(b"x" * 99)
    data = {"paired_data": str(tmp_path / "pairs"), "text_data": str(tmp_path / "texts"), "num_decode_steps": 1}
    model = taken.settle(replace(OPEN, **data)).model
    assert (model.num_image_tokens, model.num_text_tokens) == (9, 7)
    off = {f"{task}_batch": 0 for task in ("t2i", "i2t", "i2t2i")} | {"i2t2i": "off"}
    assert taken.settle(replace(OPEN, **data, **off)).model.num_text_tokens == 11
    for pattern in ("damaged", "absent-*"):  # for Streams to refuse
        usual = taken.settle(replace(OPEN, paired_data=str(tmp_path / pattern))).model
        assert (usual.num_image_tokens, usual.num_text_tokens) == (256, 64)


def test_files_that_are_not_there(files):
    values, said = files
    for name in ("vqgan", "t5_weights"):
        with pytest.raises(ValueError, match=f"^--{name}=absent: no config.json in it"):
            taken.settle(replace(OPEN, **{name: "absent"}))
    away = {"vqgan": "absent", "t5_weights": "gs://no/t5", "vocabulary": "gs://no/x.model", "paired_data": "gs://no/*"}
    assert taken.settle(replace(OPEN, **away), need=False) == replace(OPEN, **away).resolve()
    assert of(taken.settle(replace(OPEN, **values), need=False)) == said


def test_a_run_that_goes_on_keeps_its_own_sizes(files, tmp_path):
    """Also where the file alone would say others, as of a vocabulary."""
    values, said = files
    workdir = tmp_path / "run"
    begun = replace(taken.settle(replace(OPEN, **values)), vocab_size=100, t5_vocab_size=100, bos_id=88).resolve()
    workdir.mkdir()
    (workdir / "resolved.cfg").write_text(flags.to_flagfile(begun))
    assert runs.sizes(str(workdir)) == {}  # nothing saved: nothing to keep
    store.save(str(workdir), 3, {}, {}, 1)
    before = runs.sizes(str(workdir))
    assert before == {f"{workdir}/resolved.cfg": said | {"vocab_size": 100, "bos_id": 88}}
    assert of(taken.settle(replace(OPEN, **values), before=before)) == said | {"vocab_size": 100, "bos_id": 88}
    assert runs.sizes("", str(workdir)) == before and runs.sizes(str(tmp_path / "new"), str(workdir)) == before
    with pytest.raises(ValueError, match=r"^--bos_id=87: .*run/resolved.cfg has 88"):
        taken.settle(replace(OPEN, **values, bos_id=87), before=before)
    other = VqganConfig(image_size=8, patch_size=4, channel_multipliers=(1,), codebook_size=said["codebook_size"] + 5)
    (tmp_path / "vqgan" / weightsdir.CONFIG).write_text(to_json(other))
    with pytest.raises(ValueError, match=r"^--(\w+)=\d+ in .*run/resolved.cfg: .*vqgan/config.json has \d+"):
        taken.settle(replace(OPEN, **values), before=before)
