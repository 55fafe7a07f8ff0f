"""T5 ids back to text, and text to ids where TensorFlow is not, with sentencepiece; and the special ids.

Shapes: B texts, L text tokens.
"""

import numpy as np
import sentencepiece

from itit import storage
from itit.text_encoders import EOS, PAD


def check(text, place):
    """Raises ValueError, `place` and what is wrong, for a str that is no text: half a character of a broken encoding
    (a lone surrogate), which JSON and command lines let through."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: no text: half a character, {text[error.start]!r}, at {error.start}") from None


class Detokenizer:
    """Ids to text.

    Args:
      vocabulary_path: SentencePiece model (.model).

    `num_pieces` is the number of its pieces. Raises ValueError if it is no such model, or its PAD and EOS are not 0, 1.
    """

    def __init__(self, vocabulary_path):
        data = storage.read_small(vocabulary_path)
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError:
            raise ValueError(f"{vocabulary_path}: not a SentencePiece model") from None
        if (self._pieces.pad_id(), self._pieces.eos_id()) != (PAD, EOS):
            raise ValueError(
                f"{vocabulary_path}: its pad id is {self._pieces.pad_id()} and its eos id {self._pieces.eos_id()}: "
                f"must be {PAD} and {EOS}, as T5's"
            )
        self.num_pieces = self._pieces.get_piece_size()

    def decode(self, ids):
        """int [L] -> str, int [.., L] -> nested lists of str. Stops at EOS; drops PAD and ids that are no piece."""
        ids = np.asarray(ids)
        if ids.ndim > 1:
            return [self.decode(row) for row in ids]
        ends = np.flatnonzero(ids == EOS)
        ids = ids[: ends[0]] if len(ends) else ids
        return self._pieces.decode(ids[(ids > PAD) & (ids < self.num_pieces)].tolist())


class Tokenizer(Detokenizer):
    """Text to ids, too: the same as those of tensorflow-text, which makes them for training (preprocess.py)."""

    def encode(self, texts, num_text_tokens):
        """list of B str -> int64 [B, L]: words, EOS, PAD to the end. A text that is too long is cut, EOS kept."""
        rows = np.full((len(texts), num_text_tokens), PAD, np.int64)
        for row, ids in zip(rows, self._pieces.encode(texts), strict=True):
            ids = [*ids[: num_text_tokens - 1], EOS]
            row[: len(ids)] = ids
        return rows

    def count(self, text):
        """Pieces of a text, EOS included."""
        return len(self._pieces.encode(text)) + 1
