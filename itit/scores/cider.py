"""CIDEr as the COCO caption evaluation computes it, and CIDEr-D as its authors define it (arXiv:1411.5726, sec. 8).

What COCO calls CIDEr is CIDEr-D: counts of the caption are clipped to those of the reference, captions of another
length are punished, and the score is times ten. Its length is the number of pairs of neighbouring words; the paper's
that of words. The two differ only where a caption has no word.

Document frequencies are those of the references given, so a score belongs to its set: one of few images means little.
"""

import collections
import math

import numpy as np

from itit.scores.ngrams import ORDERS, count

SIGMA = 6.0  # of the penalty on lengths, in words


def scores(captions, references, length="pairs"):
    """The score of each image.

    Args:
      captions: list of str, one an image, tokenized (see ptb.py).
      references: list of lists of str, likewise.
      length: "pairs", as COCO has it, or "words", as the paper.

    Returns:
      float64 [images], 0 to 10. Their mean is the score of the set; papers give it times 100.
    """
    counts = [[count(text) for text in texts] for texts in references]
    frequency = collections.Counter(ngram for image in counts for ngram in set().union(*image))
    log_images = math.log(len(captions))
    found = []
    for caption, image in zip(captions, counts, strict=True):
        mine = _weigh(count(caption), frequency, log_images, length)
        likeness = [_likeness(mine, _weigh(other, frequency, log_images, length)) for other in image]
        found.append(10 * float(np.mean(likeness)))
    return np.array(found)


def _weigh(counts, frequency, log_images, length):
    """(for each order, n-gram -> count times inverse document frequency; their norms; the length)."""
    weights = [{} for _ in range(ORDERS)]
    for ngram, number in counts.items():
        weights[len(ngram) - 1][ngram] = number * (log_images - math.log(max(1, frequency[ngram])))
    norms = [math.sqrt(sum(w * w for w in part.values())) for part in weights]
    order = {"words": 1, "pairs": 2}[length]
    return weights, norms, sum(number for ngram, number in counts.items() if len(ngram) == order)


def _likeness(mine, other):
    """Mean over the orders of the clipped cosine."""
    cosines = []
    for a, b, norm_a, norm_b in zip(mine[0], other[0], mine[1], other[1], strict=True):
        product = sum(min(weight, b[ngram]) * b[ngram] for ngram, weight in a.items() if ngram in b)
        cosines.append(product / (norm_a * norm_b) if norm_a and norm_b else 0.0)
    return np.mean(cosines) * math.exp(-((mine[2] - other[2]) ** 2) / (2 * SIGMA**2))
