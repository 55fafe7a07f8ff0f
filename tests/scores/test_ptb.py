"""Words of captions against the published pairs, and against the Stanford tokenizer itself where Java is."""

import json
import pathlib
import random
import shutil
import subprocess

import pytest

from itit.scores import ptb
from tests.helpers.common import shared_data

WORDS = """a man's the dogs' isn't don't cannot gonna it's I'm she'll we've they'd o'clock t-shirt close-up black/white
    and/or w/o T.V. t.v. U.S. St. Ave. Mr. No. 5 No. etc. e.g. p.m. J. B. K. The A In bird,and street.A end.. ...
    hello... word... "yes" 'no' (left) [b] {c} 3 3/4 1/2 2 1/2 1,000 10:30 10:30am 3rd 1990s '90s #41 $5 5% 50/50 24/7
    &amp; & A&B jack-o-lantern d'oeuvre O'Brien ma'am Ho'ohu y'all 'tis rock'n'roll hey! what? what?! wow!!! : ; - --
    \u2013 \u2014 \u2026 \u2018q\u2019 \u201cq\u201d it\u2019s caf\u00e9 \u00bd \u00a35 5\u20ac a@b.com www.coco.org
    :) :-( x* * + = ~ C++ twenty-five co-op mid-air v1.2 b2 2x4 un-lived Boeing-747 i7 _ a_b <b> < > \\ | ^"""


def test_published_pairs():
    pairs = json.loads((shared_data() / "caption_eval" / "ptb_tokeniser_pairs.json").read_text())
    assert len(pairs) == 316
    assert ptb.tokenize([pair["raw"] for pair in pairs]) == [pair["ptb"] for pair in pairs]


@pytest.mark.parametrize(
    "text, words",
    [
        ("A man's dog isn't on St. James St.", "a man 's dog is n't on st. james st."),
        ('He said "hello", at 10:30am (U.S. time)...', "he said hello at 10:30 am -lrb- u.s. time -rrb-"),
        ("cannot see 2 1/2 black/white t-shirts", "can not see 2\u00a01/2 black/white t-shirts"),
        ("what?! a bird.It flies!", "what ?! a bird.it flies"),
        ("", ""),
        (" .,;: ", ""),
    ],
)
def test_by_hand(text, words):
    assert ptb.tokenize([text]) == [words]


def test_a_line_break_is_a_blank_and_the_next_caption_decides_on_a_full_stop():
    assert ptb.tokenize(["a\nb"]) == ["a b"]
    assert ptb.tokenize(["sign K.", "A dog"])[0] == "sign k" and ptb.tokenize(["sign K.", "dogs"])[0] == "sign k."


def test_as_the_stanford_tokenizer(tmp_path):
    if not shutil.which("java"):
        pytest.skip("no Java")
    folder = pathlib.Path(pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").__file__).parent
    draw = random.Random()
    lines = [" ".join(draw.choices(WORDS.split(), k=draw.randint(1, 14))) for _ in range(2000)]
    lines += [
        entry["caption"] for entry in json.loads((shared_data() / "coco/captions.json").read_text())["annotations"]
    ]
    lines = [line.replace("\n", " ") for line in lines]
    (tmp_path / "lines").write_text("\n".join(lines), encoding="utf-8")
    command = ["java", "-cp", folder / "stanford-corenlp-3.4.1.jar", "edu.stanford.nlp.process.PTBTokenizer",
               "-preserveLines", "-lowerCase", tmp_path / "lines"]  # fmt: skip
    theirs = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    for line, mine, other in zip(lines, ptb.tokenize(lines), theirs, strict=False):
        assert mine == " ".join(w for w in other.rstrip().split(" ") if w not in ptb.PUNCTUATION), line
