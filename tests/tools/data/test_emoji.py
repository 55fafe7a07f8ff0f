"""tools.data.emoji: names taken apart into role and skin tone, the list and its mistakes."""

import json
import random

import pytest

from tools.data.emoji import TONES, read_emoji, role_and_tone


@pytest.mark.parametrize("tone", ["light", "medium-light", "medium", "medium-dark", "dark"])
def test_role_and_tone(tone):
    assert tone in TONES
    for before, after in (("man", ", bald"), ("waving hand", ""), ("woman", ", curly hair")):
        assert role_and_tone(f"{before}: {tone} skin tone{after}") == (f"{before}: *{after}", tone)


@pytest.mark.parametrize("name", ["red heart", "man: bald", "dark skin tone", "kiss: man, man, dark skin tone", ""])
def test_names_without_a_tone_are_roles_themselves(name):
    assert role_and_tone(name) == (name, None)


def test_the_list_is_read_in_order_and_only_file_and_caption(tmp_path):
    items = [{"file": f"{random.random()}.jpg", "caption": f"grüner Kreis {i}", "skin_tone": False} for i in range(9)]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    assert read_emoji(str(tmp_path)) == [{"file": i["file"], "caption": i["caption"]} for i in items]


@pytest.mark.parametrize("line", ["not JSON", '["a"]', '{"file": "a.jpg"}', '{"caption": "a"}', ""])
def test_a_bad_line_is_named(tmp_path, line):
    place = random.randint(1, 4)
    lines = ['{"file": "a.jpg", "caption": "a"}'] * 4
    lines.insert(place - 1, line)
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"captions.jsonl:{place}: needs a JSON object with 'file' and 'caption'"):
        read_emoji(str(tmp_path))
