"""tools.train_sentencepiece: the vocabulary of Scenes, its ids, texts of any length, and errors."""

import gzip
import sys

import numpy as np
import pytest
import sentencepiece

from itit.data import records, scenes
from tools import train_sentencepiece


def test_every_scenes_word_is_one_piece(tmp_path):
    rng = np.random.default_rng()
    drawn = [scenes.sample(rng, ("seen",)) for _ in range(2000)]
    captions = [scenes.describe(scene, rng) for scene in drawn]
    with records.RecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for caption in captions[:1000]:
            writer.write(records.encode_example({"text": caption}))
    (tmp_path / "b.txt").write_text("\n".join(captions[1000:]) + "\n\n")
    lines = list(train_sentencepiece.texts(f"{tmp_path}/*.tfrecord,{tmp_path}/b.txt"))
    assert lines == captions
    model = sentencepiece.SentencePieceProcessor(model_proto=train_sentencepiece.train(lines, 512))
    assert (model.pad_id(), model.eos_id(), model.unk_id(), model.bos_id()) == (0, 1, 2, -1)
    assert 43 < model.get_piece_size() <= 512
    for word in scenes.WORDS:
        assert len(model.encode(word)) == 1
    for scene in (scenes.sample(rng, ("never",)) for _ in range(500)):
        caption = scenes.describe(scene, rng)
        ids = model.encode(caption)
        assert len(ids) == len(caption.split()) <= 31 and 2 not in ids
        assert scenes.parse(model.decode(ids)) == scene


def test_errors_in_one_line(tmp_path):
    path = str(tmp_path / "a.tfrecord")
    with records.RecordWriter(path) as writer:
        writer.write(records.encode_example({"image": b"x"}))
    with pytest.raises(ValueError, match=r"a.tfrecord@0: no feature 'text'; it holds image"):
        list(train_sentencepiece.texts(path))
    with records.RecordWriter(path) as writer:
        writer.write(b"\xff")
    with pytest.raises(ValueError, match="a.tfrecord@0: not a tf.train.Example"):
        list(train_sentencepiece.texts(path))
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\n")
    with pytest.raises(ValueError, match="a.txt:2: the text is not UTF-8"):
        list(train_sentencepiece.texts(str(tmp_path / "a.txt")))
    for vocab_size in (4, 18):  # 16 characters with the blank
        with pytest.raises(ValueError, match=rf"^--vocab_size={vocab_size}: must be at least 19, one for each"):
            train_sentencepiece.train(["the quick brown fox"], vocab_size)
    assert train_sentencepiece.train(["the quick brown fox"], 19)
    for nothing in ([], [" ", ""], [train_sentencepiece.RESERVED], ["x" * 5000]):
        with pytest.raises(ValueError, match="^no texts to learn from: all are empty, or there are none$"):
            train_sentencepiece.train(nothing, 100)


def test_texts_of_lines_as_people_have_them(tmp_path):
    (tmp_path / "a.TXT").write_bytes("\ufeffone\u2028two \r\n\n three".encode())
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    assert list(train_sentencepiece.texts(f"{tmp_path}/*")) == ["one\u2028two", "three", "packed"]


def test_no_word_of_a_long_text_is_lost_without_a_word(tmp_path, monkeypatch, capsys):
    """Each word of a text far above SentencePiece's limit becomes a piece, as if each stood on a line of its own."""
    rng = np.random.default_rng()
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(60)]
    long = " ".join(rng.permutation(words * 100).tolist())
    assert len(long.encode()) > 10 * 4192
    found, apart = (train_sentencepiece.train(texts, 500) for texts in ([long], long.split()))
    models = [sentencepiece.SentencePieceProcessor(model_proto=model) for model in (found, apart)]
    for word in words:
        assert models[0].encode(word, out_type=str) == models[1].encode(word, out_type=str)
    left_out = []
    parts = list(train_sentencepiece.shortened([long, "short", f"{'y' * 4001} {long} {'ü' * 3000}"], left_out))
    assert " ".join(parts) == f"{long} short {long}" and left_out == ["y" * 20, "ü" * 20]
    assert max(len(part.encode()) for part in parts) <= train_sentencepiece.MAX_BYTES
    reserved = train_sentencepiece.train([f"{train_sentencepiece.RESERVED} {word}" for word in words], 500)
    assert sentencepiece.SentencePieceProcessor(model_proto=reserved).get_piece_size() > 60
    (tmp_path / "a.txt").write_text(f"{'y' * 4001} short words\n")
    flags = train_sentencepiece.flags
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    for name, value in (("input", "a.txt"), ("output", "a.model")):
        flags.DEFINE_string(name, str(tmp_path / value), "", flag_values=flags.FLAGS)
    flags.DEFINE_integer("vocab_size", 50, "", flag_values=flags.FLAGS)
    flags.FLAGS(sys.argv[:1])
    train_sentencepiece.main([])
    assert capsys.readouterr().err == "1 words above 4000 bytes left out, the first begins 'yyyyyyyyyyyyyyyyyyyy'\n"


def test_as_many_pieces_as_the_texts_need(tmp_path):
    """Of a language with more characters than pieces are usual, each is one; few texts give few pieces."""
    rng, usual = np.random.default_rng(), train_sentencepiece.USUAL
    characters = [chr(0x4E00 + n) for n in range(usual + int(rng.integers(1, 500)))]
    texts = ["".join(rng.permutation(characters)[:200]) for _ in range(20)]
    texts += ["".join(characters[start::4]) for start in range(4)]
    for name, lines in (("many", texts), ("few", ["ein Haus", "zwei H\u00e4user"])):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    models = {name: train_sentencepiece.train_fitting(str(tmp_path / f"{name}.txt"), []) for name in ("many", "few")}
    many, few = (sentencepiece.SentencePieceProcessor(model_proto=models[name]) for name in ("many", "few"))
    assert len(characters) + 3 <= many.get_piece_size() <= len(characters) + 4 + usual
    assert many.unk_id() not in many.encode("".join(characters))
    assert few.get_piece_size() < 100 and few.decode(few.encode("zwei H\u00e4user")) == "zwei H\u00e4user"
