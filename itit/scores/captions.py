"""All scores of a set of captions at once, with what tells whether they can be trusted."""

import collections

import numpy as np

from itit.scores import bleu, cider, ptb, rouge

SMALL_SET = 1000  # images; below, document frequencies are too coarse to compare with other sets


def score(captions, references):
    """Scores captions against references, both as people write them.

    Args:
      captions: list of str, one an image.
      references: list of lists of str, at least one an image.

    Returns:
      dict: CIDEr (0 to 10, as COCO; papers give it times 100), CIDEr-D, Bleu_1 to Bleu_4, ROUGE_L, num_images.
    """
    captions = ptb.tokenize(captions)
    flat = iter(ptb.tokenize([text for texts in references for text in texts]))
    references = [[next(flat) for _ in texts] for texts in references]
    found = {
        "CIDEr": float(cider.scores(captions, references).mean()),
        "CIDEr-D": float(cider.scores(captions, references, length="words").mean()),
    }
    found |= {f"Bleu_{n}": value for n, value in enumerate(bleu.bleu(captions, references), 1)}
    return found | {"ROUGE_L": float(rouge.scores(captions, references).mean()), "num_images": len(captions)}


def quick(captions, references):
    """CIDEr alone, for evaluation in passing. Arguments as of `score`."""
    flat = iter(ptb.tokenize([text for texts in references for text in texts]))
    references = [[next(flat) for _ in texts] for texts in references]
    return float(cider.scores(ptb.tokenize(captions), references).mean())


def statistics(captions):
    """How long captions are and how much they repeat: what a score alone hides.

    Returns:
      dict: words (mean), empty (share of captions without a word), distinct (share of captions that are unlike all
      before), vocabulary (different words), repeating (share in which a pair of words comes back within the caption or
      a word follows itself).
    """
    words = [text.split() for text in ptb.tokenize(captions)]
    return {
        "words": float(np.mean([len(row) for row in words])),
        "empty": float(np.mean([not row for row in words])),
        "distinct": len({tuple(row) for row in words}) / len(words),
        "vocabulary": len({word for row in words for word in row}),
        "repeating": float(np.mean([_repeats(row) for row in words])),
    }


def _repeats(row):
    pairs = collections.Counter(zip(row, row[1:], strict=False))
    return any(number > 1 or a == b for (a, b), number in pairs.items())
