"""T5's span corruption (arXiv:1910.10683, sec. 3.1.4; 15 % of the words, spans of 3 on average), on ids in NumPy.

Each chosen span is replaced by one sentinel; the target is every sentinel with the words that it stands for, then EOS.
A text begins with words that are kept and ends with a span, so that the target needs no sentinel at its end.

Shapes: B rows, L text tokens with EOS, T target tokens with EOS, n words of a text.
"""

import numpy as np

from itit.data.text import EOS, PAD

DENSITY, MEAN_SPAN = 0.15, 3


def num_hidden(num_words):
    """(words to hide, spans) of a text of n words: at least one of each, but one word is left; (0, 0) for n below 2."""
    if num_words < 2:
        return 0, 0
    hidden = min(max(round(num_words * DENSITY), 1), num_words - 1)
    return hidden, max(round(hidden / MEAN_SPAN), 1)


def target_length(num_text_tokens):
    """T: what the longest text of L tokens needs."""
    return sum(num_hidden(num_text_tokens - 1)) + 1


def corrupt(ids, first_sentinel, draws):
    """One text.

    Args:
      ids: int64 [n], words alone.
      first_sentinel: id of the first span's sentinel; those of later spans count down, as T5's do.
      draws: NumPy Generator; every division into spans is equally likely.

    Returns:
      (inputs, targets): lists of ids, both with EOS.
    """
    hidden, spans = num_hidden(len(ids))
    if not spans:
        return [*ids.tolist(), EOS], [EOS]
    inputs, targets, start = [], [], 0
    lengths = zip(_pieces(len(ids) - hidden, spans, draws), _pieces(hidden, spans, draws), strict=True)
    for number, (kept, lost) in enumerate(lengths):
        inputs += [*ids[start : start + kept].tolist(), first_sentinel - number]
        targets += [first_sentinel - number, *ids[start + kept : start + kept + lost].tolist()]
        start += kept + lost
    return [*inputs, EOS], [*targets, EOS]


def _pieces(total, count, draws):
    """Lengths of `count` pieces, each at least 1, that make up `total`: every such division is equally likely."""
    cuts = np.sort(draws.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else []
    return np.diff([0, *cuts, total]).tolist()


class Corrupted:
    """The texts of `streams` (see data/streams.py) with spans hidden; a pure function of (seed, place in the stream).

    Args:
      task: whose texts.
      num_text_tokens: L.
      first_sentinel: see `corrupt`.
    """

    def __init__(self, streams, task, num_text_tokens, first_sentinel, seed):
        self._streams, self._task, self._seed = streams, task, seed
        self._first_sentinel, self._target_length = first_sentinel, target_length(num_text_tokens)

    def batch(self, step):
        """{"inputs": int64 [B, L], "targets": int64 [B, T]}, this host's rows, PAD at their ends."""
        ids, places = self._streams.batch(step)[f"{self._task}/text_ids"], self._streams.rows(step)[self._task]
        inputs = np.full_like(ids, PAD)
        targets = np.full((len(ids), self._target_length), PAD, np.int64)
        for row, place in enumerate(places.tolist()):
            words = ids[row, : int(np.argmax(ids[row] == EOS))]
            pair = corrupt(words, self._first_sentinel, np.random.default_rng((self._seed, place)))
            for array, values in zip((inputs, targets), pair, strict=True):
                array[row, : len(values)] = values
        return {"inputs": inputs, "targets": targets}
