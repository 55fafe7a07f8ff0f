"""tensorflow-text and sentencepiece give the same ids, on real captions with the genuine T5 vocabulary."""

import importlib
import json
import sys

import numpy as np
import pytest
import sentencepiece

from itit.data.text import Detokenizer, Tokenizer
from tests.helpers.common import shared_data


@pytest.fixture(scope="module")
def vocabulary():
    return str(shared_data() / "t5" / "spiece.model")


@pytest.fixture(scope="module")
def captions():
    data = json.loads((shared_data() / "coco" / "captions_val2017.json").read_text())
    texts = [item["caption"] for item in data["annotations"]]
    return [*np.random.default_rng().choice(texts, 3000), "  naïve  café ﬁn ", "数 é 🙂 \t x", "", "\u200b"]


def tokenizer(vocabulary, num_text_tokens):
    pytest.importorskip("tensorflow_text")
    from itit.data.preprocess import TextTokenizer

    return TextTokenizer(vocabulary, num_text_tokens)


@pytest.mark.parametrize("length", [64, 8, 1])
def test_ids_equal_sentencepieces(vocabulary, captions, length):
    ours, pieces = tokenizer(vocabulary, length), sentencepiece.SentencePieceProcessor(model_file=vocabulary)
    expected = np.zeros((len(captions), length), np.int64)
    for row, ids in zip(expected, pieces.encode(captions), strict=True):
        ids = [*ids[: length - 1], 1]
        row[: len(ids)] = ids
    np.testing.assert_array_equal(ours(captions), expected)
    assert ours.num_cut == sum(len(ids) > length - 1 for ids in pieces.encode(captions))


@pytest.mark.parametrize("length", [64, 8, 1])
def test_ids_without_tensorflow_equal_those_with_it(vocabulary, captions, length):
    expected = tokenizer(vocabulary, length)(captions)
    np.testing.assert_array_equal(Tokenizer(vocabulary).encode(captions, length), expected)


def test_texts_come_back(vocabulary, captions):
    ids = tokenizer(vocabulary, 64)(captions)
    pieces = sentencepiece.SentencePieceProcessor(model_file=vocabulary)
    ids = ids.reshape(2, -1, 64)
    texts = Detokenizer(vocabulary).decode(ids)
    assert texts[0] + texts[1] == [pieces.decode(pieces.encode(text)[:63]) for text in captions]


def test_what_is_no_piece_is_dropped(vocabulary):
    detokenizer = Detokenizer(vocabulary)
    pieces = sentencepiece.SentencePieceProcessor(model_file=vocabulary)
    assert detokenizer.num_pieces == pieces.get_piece_size() == 32000
    words = pieces.encode("a red house")
    ids = [32100, *words, 0, 32127, 1, *words]
    assert detokenizer.decode(ids) == "a red house"
    assert detokenizer.decode(np.array(ids[:-5])) == "a red house"


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.model").write_bytes(b"no vocabulary")
    with pytest.raises(ValueError, match="x.model: not a SentencePiece model"):
        Detokenizer(str(tmp_path / "x.model"))


def test_other_special_ids_are_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 9), model_prefix=str(tmp_path / "x"), vocab_size=11, minloglevel=2
    )
    with pytest.raises(ValueError, match="pad id is -1 and its eos id 2"):
        Detokenizer(str(tmp_path / "x.model"))


def test_texts_without_tensorflow_are_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "itit.data.preprocess", raising=False)
    with pytest.raises(ValueError, match="texts need tensorflow-text .*ready text_ids"):
        importlib.import_module("itit.data.preprocess")
