"""tools.train_sentencepiece: the vocabulary of Scenes, its ids, and errors."""

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
    with pytest.raises(ValueError, match="cannot learn"):
        train_sentencepiece.train(["the quick brown fox"], 6)
