"""ROUGE-L of captions (Lin 2004), as the COCO caption evaluation computes it: recall weighs 1.2 times as much."""

import numpy as np

BETA = 1.2


def scores(captions, references):
    """float64 [images], 0 to 1. Arguments as of `cider.scores`. The best precision and the best recall may be those of
    two references."""
    return np.array(
        [_score(c.split(" "), [t.split(" ") for t in ts]) for c, ts in zip(captions, references, strict=True)]
    )


def _score(caption, references):
    common = [_longest_common(caption, reference) for reference in references]
    precision = max(common) / len(caption)
    recall = max(number / len(reference) for number, reference in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(a, b):
    """Length of the longest row of words that both have in this order."""
    row = [0] * (len(b) + 1)
    for word in a:
        above = row
        row = [0]
        for i, other in enumerate(b):
            row.append(above[i] + 1 if word == other else max(above[i + 1], row[i]))
    return row[-1]
