"""`python -m tools.train_sentencepiece --input=PATTERN --output=PATH.model`: a vocabulary from texts of one's own.

T5's ids: pad 0, eos 1, unk 2, no bos. A BPE model: where there is room, every frequent word becomes one piece, while
the unigram method breaks the few words of a small grammar up.
"""

import io
import re
import sys

import sentencepiece
from absl import flags

from itit import storage
from itit.data import records
from itit.flags import run_main
from tools.data.sources import lines
from tools.data.sources.item import BadItem, utf8

MAX_BYTES = 4000  # of a text at once: SentencePiece passes longer ones over without a word
RESERVED = "\u2585"  # a character that it marks what is unknown by; texts with it are passed over, too
USUAL = 1000  # pieces
_TOO_SMALL = re.compile(r"required_chars\. \d+ vs (\d+)")


class TooFew(ValueError):
    """Fewer pieces than the texts have characters; `least`: as many as it must be."""

    def __init__(self, vocab_size, least):
        super().__init__(f"--vocab_size={vocab_size}: must be at least {least}, one for each character of the texts, "
                         "and PAD, EOS, UNK")  # fmt: skip
        self.least = int(least)


def texts(pattern):
    """Yields the texts of .txt files (one a line; also .txt.gz, .txt.zst) and TFRecord shards.

    Raises ValueError, with the place, for a record without one and for what is not UTF-8.
    """
    for path in storage.glob(pattern):
        yield from filter(None, map(str.strip, _lines(path) if lines.OF_TEXT.search(path) else _records(path)))


def _lines(path):
    for number, line in lines.numbered(path):
        if isinstance(line, BadItem):
            raise line
        yield _decoded(f"{path}:{number}", line)


def _records(path):
    for offset, length in records.index(path).tolist():
        payload = records.read(path, offset, length)
        try:
            features = records.decode_example(payload)
        except ValueError as error:
            raise records.BadRecord(path, offset, error) from None
        if not isinstance(features.get("text"), list) or len(features["text"]) != 1:
            raise ValueError(f"{path}@{offset}: no feature 'text'; it holds {', '.join(sorted(features))}")
        yield _decoded(f"{path}@{offset}", features["text"][0])


def _decoded(place, data):
    try:
        return utf8(data)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def shortened(found, left_out):
    """Yields texts as parts that SentencePiece takes, cut between words, which is where it cuts them itself.

    Args:
      left_out: list that takes the beginning of each word that is too long to be one.
    """
    for text in found:
        text = text.replace(RESERVED, " ")
        if len(text.encode()) <= MAX_BYTES:
            yield text
            continue
        part, size = [], 0
        for word in text.split():
            length = len(word.encode()) + 1
            if length > MAX_BYTES:
                left_out.append(word[:20])
                continue
            if size + length > MAX_BYTES:
                yield " ".join(part)
                part, size = [], 0
            part.append(word)
            size += length
        yield " ".join(part)


def train(found, vocab_size, left_out=None):
    """Texts -> bytes of a SentencePiece model with at most `vocab_size` pieces. `left_out`: as `shortened` takes it.

    Raises ValueError, one line, where there are no texts; TooFew where the pieces are too few for their characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=filter(None, shortened(found, [] if left_out is None else left_out)),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        least = _TOO_SMALL.search(str(error))
        if least:
            raise TooFew(vocab_size, least[1]) from None
        if "sentences_.empty()" in str(error) or "all_chars_count" in str(error):
            raise ValueError("no texts to learn from: all are empty, or there are none") from None
        raise ValueError(f"SentencePiece cannot learn from these texts: {error}") from None
    return model.getvalue()


def train_fitting(pattern, left_out):
    """`train` on the texts of a pattern with USUAL pieces, and with more where they have that many characters."""
    try:
        return train(texts(pattern), USUAL, left_out)
    except TooFew as error:  # Chinese and Japanese have thousands
        left_out.clear()
        return train(texts(pattern), error.least + USUAL, left_out)


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards or .txt files, plain, .gz or .zst; comma-separated patterns.",
                        required=True)  # fmt: skip
    flags.DEFINE_string("output", None, "The .model file to write.", required=True)
    flags.DEFINE_integer("vocab_size", 0, f"Most pieces; fewer where the texts do not give as many. 0: {USUAL}, and of "
                         "texts with that many characters more.", lower_bound=0)  # fmt: skip


def main(_):
    left_out, pattern, size = [], flags.FLAGS.input, flags.FLAGS.vocab_size
    model = train(texts(pattern), size, left_out) if size else train_fitting(pattern, left_out)
    if left_out:
        what = f"{len(left_out)} words above {MAX_BYTES} bytes left out"
        print(f"{what}, the first begins {left_out[0]!r}", file=sys.stderr)
    storage.write_bytes(flags.FLAGS.output, model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    print(f"{flags.FLAGS.output}: {pieces} pieces")


if __name__ == "__main__":
    define_flags()
    run_main(main)
