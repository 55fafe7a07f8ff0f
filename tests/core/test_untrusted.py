"""itit.untrusted: JSON that nobody vouches for is one object or one line; what is shown of a text fits into a line."""

import json

import numpy as np
import pytest

from itit.untrusted import parse_json, shown


def test_an_object_is_read_as_json_reads_it():
    rng = np.random.default_rng()
    values = {f"k{i}": rng.integers(-9, 9, 3).tolist() for i in range(5)} | {"text": "\u00e9\n", "none": None}
    assert parse_json(json.dumps(values), "x") == parse_json(json.dumps(values).encode(), "x") == values


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "7", "null", '"a"', b"\xff", '{"a": 1} {}', "[" * 10**5, '{"a":' * 10**5]
)
def test_what_is_no_object_is_one_line(text):
    with pytest.raises(ValueError, match="^place: not (JSON|a JSON object)") as caught:
        parse_json(text, "place")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_shown_fits_into_a_line():
    assert shown("plain text, \u00e9") == "plain text, \u00e9"
    assert shown("a\nb\x1b[2Jc\u202ed") == "a\\nb\\x1b[2Jc\\u202ed"
    assert shown("x" * 201) == "x" * 200 + "..." and shown("x" * 200) == "x" * 200 and shown("abc", 2) == "ab..."
    assert all(c.isprintable() for c in shown("".join(map(chr, range(3000))), 3000))
