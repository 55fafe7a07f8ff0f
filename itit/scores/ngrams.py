"""Rows of one to four words, counted: what BLEU and CIDEr begin with."""

import collections

ORDERS = 4


def count(text):
    """Words separated by blanks -> Counter of tuples of 1 to 4 neighbouring words."""
    words = text.split()
    return collections.Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))
