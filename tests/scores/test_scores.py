"""CIDEr, BLEU and ROUGE-L: published scores, the package of the COCO evaluation on random and real captions, and sums
by hand."""

import json
import math

import numpy as np
import pytest

from itit.scores import bleu, captions, cider, ngrams, ptb, rouge
from tests.helpers.common import shared_data

WORDS = "a the man dog cat on in red blue ball with table street riding horse is are two of and"


def random_set(seed=None, images=60):
    draw = np.random.default_rng(seed)

    def text():
        return " ".join(draw.choice(WORDS.split(), draw.integers(1, 13)))

    return [text() for _ in range(images)], [[text() for _ in range(draw.integers(1, 6))] for _ in range(images)]


def rounded_as(value, printed):
    digits = len(str(printed).partition(".")[2])
    return round(value, digits) == printed


def test_nlg_eval_to_every_digit():
    folder = shared_data() / "caption_eval" / "nlg_eval"
    lines = {name: (folder / name).read_text().splitlines() for name in ("hyp.txt", "ref1.txt", "ref2.txt")}
    found = captions.score(lines["hyp.txt"], list(zip(lines["ref1.txt"], lines["ref2.txt"], strict=True)))
    expected = json.loads((folder / "expected.json").read_text())
    for name in ("CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
        assert rounded_as(found[name], expected[name]), (name, found[name])
    assert found["num_images"] == 2


@pytest.mark.parametrize("kind", ["good", "bad"])
def test_clipscore_to_every_digit(kind):
    folder = shared_data() / "caption_eval" / "clipscore"
    refs, caps, expected = (json.loads((folder / name).read_text())
                            for name in ("refs.json", f"{kind}_captions.json", "expected.json"))  # fmt: skip
    found = captions.score([caps[name] for name in refs], list(refs.values()))
    assert rounded_as(found["CIDEr"], expected[kind]["CIDEr"]) and rounded_as(found["ROUGE_L"], expected[kind]["ROUGE"])
    for n, value in enumerate(expected[kind]["BLEU"], 1):
        assert rounded_as(found[f"Bleu_{n}"], value)


def compare(mine, theirs):
    package = pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    assert package
    results, references = {i: [c] for i, c in enumerate(mine)}, dict(enumerate(theirs))
    mean, each = Cider().compute_score(references, results)
    np.testing.assert_allclose(cider.scores(mine, theirs), each, rtol=1e-12, atol=1e-14)
    assert cider.scores(mine, theirs).mean() == pytest.approx(mean, rel=1e-12)
    np.testing.assert_allclose(
        bleu.bleu(mine, theirs), Bleu(4).compute_score(references, results, verbose=0)[0], rtol=1e-12, atol=1e-15
    )
    np.testing.assert_allclose(rouge.scores(mine, theirs), Rouge().compute_score(references, results)[1], rtol=1e-12)


def test_as_the_coco_package_on_random_captions():
    mine, theirs = random_set()
    mine[3], theirs[5][0] = "", ""
    compare(mine, theirs)


def test_as_the_coco_package_on_real_captions():
    groups = {}
    for entry in json.loads((shared_data() / "coco" / "captions_val2017.json").read_text())["annotations"]:
        groups.setdefault(entry["image_id"], []).append(entry["caption"])
    groups = [texts for texts in groups.values() if len(texts) > 1][:300]
    compare(ptb.tokenize([texts[0] for texts in groups]), [ptb.tokenize(texts[1:]) for texts in groups])


def test_cider_by_hand():
    # Two images; "dog" is in the references of one, "a" of both: only "dog" and "a dog" weigh, ln 2 each.
    captions_, references = ["a dog", "a cat"], [["a dog"], ["a dog a bird"]]
    references[1] = ["a bird"]
    found = cider.scores(captions_, references)
    assert found[0] == pytest.approx(10 * 2 / 4)  # orders 1 and 2 agree in full, 3 and 4 are empty
    assert found[1] == 0
    assert ngrams.count("a b a") == {("a",): 2, ("b",): 1, ("a", "b"): 1, ("b", "a"): 1, ("a", "b", "a"): 1}


def test_lengths_of_cider_d_are_words_and_matter_where_there_are_none():
    mine, theirs = random_set()
    np.testing.assert_allclose(cider.scores(mine, theirs), cider.scores(mine, theirs, length="words"), rtol=1e-12)
    long = [["red dog " + "x " * n] for n in (0, 7)]
    base = cider.scores(["red dog", "blue cat"], [long[0], ["z"]])[0]
    longer = cider.scores(["red dog", "blue cat"], [long[1], ["z"]])[0]
    assert longer < base * math.exp(-(7**2) / 72)  # the penalty, and the further words in the norm


def test_statistics_tell_repetition():
    found = captions.statistics(["a dog a dog", "a a cat", "a cat on a mat", "a cat on a mat", "."])
    assert found["repeating"] == 2 / 5 and found["distinct"] == 4 / 5 and found["empty"] == 1 / 5
    assert found["vocabulary"] == 5 and found["words"] == pytest.approx((4 + 3 + 5 + 5) / 5)


def test_quick_is_the_same_cider():
    mine, theirs = random_set(images=20)
    assert captions.quick(mine, theirs) == captions.score(mine, theirs)["CIDEr"]
