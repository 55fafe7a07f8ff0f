"""`python -m tools.train_sentencepiece --input=PATTERN --output=PATH.model`: a vocabulary from texts of one's own.

T5's ids: pad 0, eos 1, unk 2, no bos. A BPE model: where there is room, every frequent word becomes one piece, while
the unigram method breaks the few words of a small grammar up.
"""

import io

import sentencepiece
from absl import flags

from itit import storage
from itit.data import records
from itit.flags import run_main


def texts(pattern):
    """Yields the texts of .txt files (one a line) and TFRecord shards. Raises ValueError for a record without one."""
    for path in storage.glob(pattern):
        if path.endswith(".txt"):
            with storage.open(path) as lines:
                yield from filter(None, (line.decode().strip() for line in lines))
            continue
        for offset, length in records.index(path).tolist():
            features = records.decode_example(records.read(path, offset, length))
            if "text" not in features:
                raise ValueError(f"{path}@{offset}: no feature 'text'; it holds {', '.join(sorted(features))}")
            yield features["text"][0].decode()


def train(lines, vocab_size):
    """Texts -> bytes of a SentencePiece model with at most `vocab_size` pieces. Raises ValueError for too few texts."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
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
        raise ValueError(f"SentencePiece cannot learn from these texts: {error}") from None
    return model.getvalue()


def define_flags():
    flags.DEFINE_string("input", None, "TFRecord shards or .txt files; comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "The .model file to write.", required=True)
    flags.DEFINE_integer("vocab_size", 512, "Most pieces; fewer where the texts do not give as many.", lower_bound=4)


def main(_):
    model = train(texts(flags.FLAGS.input), flags.FLAGS.vocab_size)
    storage.write_bytes(flags.FLAGS.output, model)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    print(f"{flags.FLAGS.output}: {pieces} pieces")


if __name__ == "__main__":
    define_flags()
    run_main(main)
