"""Span corruption against T5's rules written out by hand, and its statistics."""

import collections

import numpy as np
import pytest

from tests.helpers.tiny import seeds
from tools.training import span_corruption
from tools.training.span_corruption import Corrupted, corrupt, num_hidden, target_length

FIRST = 32099  # <extra_id_0>


class Fixed:
    """Draws these cuts, in this order."""

    def __init__(self, *cuts):
        self.cuts = list(cuts)

    def choice(self, total, count, replace):
        cuts = self.cuts.pop(0)
        assert not replace and len(cuts) == count and max(cuts) < total
        return np.array(cuts)


def test_a_case_made_by_hand():
    """40 words: 6 hidden in 2 spans. The first 10 words are kept, 2 hidden, 24 kept, 4 hidden."""
    words = np.arange(100, 140)
    inputs, targets = corrupt(words, FIRST, Fixed([9], [1]))
    assert inputs == [*range(100, 110), 32099, *range(112, 136), 32098, 1]
    assert targets == [32099, 110, 111, 32098, 136, 137, 138, 139, 1]


def test_one_span_needs_no_draw_and_ends_the_text():
    inputs, targets = corrupt(np.arange(10, 20), FIRST, None)
    assert (inputs, targets) == ([*range(10, 18), 32099, 1], [32099, 18, 19, 1])
    assert corrupt(np.array([7, 8]), FIRST, None) == ([7, 32099, 1], [32099, 8, 1])
    assert corrupt(np.array([7]), FIRST, None) == ([7, 1], [1])


def test_counts_are_t5s():
    """Words -> (hidden, spans); round() takes halves to even, as T5's does: 10 words have 1.5, hence 2."""
    table = {0: (0, 0), 1: (0, 0), 2: (1, 1), 3: (1, 1), 10: (2, 1), 13: (2, 1), 20: (3, 1), 31: (5, 2), 50: (8, 3),
             512: (77, 26)}  # fmt: skip
    assert {words: num_hidden(words) for words in table} == table
    assert target_length(32) == 5 + 2 + 1


@pytest.mark.parametrize("seed", seeds(3))
def test_nothing_is_lost(seed):
    """The words of the target, put where their sentinels stand in the input, give the text."""
    draws = np.random.default_rng(seed)
    for _ in range(50):
        words = draws.integers(3, 32000, draws.integers(2, 120))
        inputs, targets = corrupt(words, FIRST, draws)
        hidden, spans = num_hidden(len(words))
        sentinels = [x for x in inputs if x >= 32000]
        assert sentinels == [FIRST - i for i in range(spans)] == [x for x in targets if x >= 32000]
        assert len(targets) == hidden + spans + 1 <= target_length(len(words) + 1)
        found, rest = [], targets[:-1]
        for x in inputs[:-1]:
            if x < 32000:
                found.append(x)
                continue
            end = next((i for i, y in enumerate(rest[1:], 1) if y >= 32000), len(rest))
            assert rest[0] == x and end > 1
            found += rest[1:end]
            rest = rest[end:]
        assert found == words.tolist() and inputs[-1] == targets[-1] == 1


def test_every_division_is_equally_likely():
    draws = np.random.default_rng(0)
    found = collections.Counter(tuple(span_corruption._pieces(5, 3, draws)) for _ in range(6000))
    assert len(found) == 6 and all(sum(pieces) == 5 for pieces in found)
    assert max(abs(count - 1000) for count in found.values()) < 150  # five standard deviations


class Texts:
    """Streams of four texts."""

    def rows(self, step):
        return {"t2t": np.arange(2 * step, 2 * step + 2)}

    def batch(self, step):
        ids = np.zeros((2, 40), np.int64)
        for row, place in enumerate(self.rows(step)["t2t"]):
            ids[row, :39] = np.arange(1000 * place + 3, 1000 * place + 42)
            ids[row, 39] = 1
        return {"t2t/text_ids": ids}


def test_batches_are_a_function_of_seed_and_step():
    first, again, other = (Corrupted(Texts(), "t2t", 40, FIRST, seed) for seed in (3, 3, 4))
    batch = first.batch(1)
    assert batch["inputs"].shape == (2, 40) and batch["targets"].shape == (2, target_length(40))
    assert all(np.array_equal(batch[name], again.batch(1)[name]) for name in batch)
    assert not np.array_equal(batch["inputs"], other.batch(1)["inputs"])
    words = Texts().batch(1)["t2t/text_ids"][0, :39]
    inputs, targets = corrupt(words, FIRST, np.random.default_rng((3, 2)))
    assert batch["inputs"][0].tolist() == inputs + [0] * (40 - len(inputs))
    assert batch["targets"][0].tolist() == targets + [0] * (target_length(40) - len(targets))
