"""The emoji set: its list, and a name taken apart into role and skin tone."""

import json

from itit import storage

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def role_and_tone(name):
    """'man: dark skin tone, bald' -> ('man: *, bald', 'dark'); a name without a skin tone -> (name, None)."""
    for tone in TONES:
        role = name.replace(f": {tone} skin tone", ": *")
        if role != name:
            return role, tone
    return name, None


def read_emoji(folder):
    """The lines of captions.jsonl as dicts. Raises ValueError naming the line that lacks a field."""
    path = storage.join(folder, "captions.jsonl")
    emoji = []
    with storage.open(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                item = json.loads(line)
                emoji.append({"file": item["file"], "caption": item["caption"]})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: needs a JSON object with 'file' and 'caption' ({error})") from None
    return emoji
