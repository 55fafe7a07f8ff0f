"""Texts to T5 ids with tensorflow-text. The only file that imports TensorFlow, and only texts need it.

Shapes: B texts, L text tokens.
"""

import contextlib
import os
import threading

import numpy as np

# TensorFlow reads these once, on import; oneDNN, of no use for text, would announce itself on every start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
try:
    import tensorflow as tf
    import tensorflow_text
except ModuleNotFoundError as error:
    raise ValueError(
        f"records that hold texts need tensorflow-text ({error}): install it, or give ready text_ids"
    ) from None

from itit import storage  # noqa: E402
from itit.data.text import EOS, PAD  # noqa: E402

# TensorFlow only splits text here: no GPU memory, no thread per core. It refuses this once it has started; then whoever
# started it has chosen.
with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


class TextTokenizer:
    """SentencePiece by tensorflow-text.

    Args:
      vocabulary_path: SentencePiece model (.model).
      num_text_tokens: L.

    May be called from several threads. `num_cut` counts the texts so far that were longer than L.
    """

    def __init__(self, vocabulary_path, num_text_tokens):
        with storage.open(vocabulary_path) as file:
            self._pieces = tensorflow_text.SentencepieceTokenizer(file.read(), out_type=tf.int32)
        self._num_text_tokens, self._lock = num_text_tokens, threading.Lock()
        self.num_cut = 0

    def __call__(self, texts):
        """list of B str -> int64 [B, L]: words, EOS, PAD to the end. A text that is too long is cut, EOS kept."""
        ids = np.full((len(texts), self._num_text_tokens), PAD, np.int64)
        ragged = self._pieces.tokenize(tf.constant(texts, tf.string))
        values, splits = ragged.values.numpy(), ragged.row_splits.numpy()
        with self._lock:
            self.num_cut += int((np.diff(splits) >= self._num_text_tokens).sum())
        for row, start, end in zip(ids, splits[:-1], splits[1:], strict=True):
            kept = min(end - start, self._num_text_tokens - 1)
            row[:kept] = values[start : start + kept]
            row[kept] = EOS
        return ids
