"""BLEU-1 to BLEU-4 of a set of captions (Papineni et al. 2002), as the COCO caption evaluation computes them.

The brevity penalty takes the reference whose length is nearest, of equally near ones the shortest.
"""

import collections
import math

from itit.scores.ngrams import ORDERS, count

TINY, SMALL = 1e-15, 1e-9  # in numerators and denominators: no division by 0, and the original's last digits


def bleu(captions, references):
    """list of 4 floats, 0 to 1, of all images together. Arguments as of `cider.scores`."""
    right, given, length, reference_length = [0] * ORDERS, [0] * ORDERS, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        most = collections.Counter()
        for text in texts:
            most |= count(text)
        for ngram, number in (count(caption) & most).items():
            right[len(ngram) - 1] += number
        size = len(caption.split())
        given = [total + max(0, size - n) for n, total in enumerate(given)]
        length += size
        reference_length += min((abs(len(text.split()) - size), len(text.split())) for text in texts)[1]
    ratio = (length + TINY) / (reference_length + SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    found, product = [], 1.0
    for n in range(ORDERS):
        product *= (right[n] + TINY) / (given[n] + SMALL)
        found.append(penalty * product ** (1 / (n + 1)))
    return found
