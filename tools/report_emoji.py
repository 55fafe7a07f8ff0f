"""`python -m tools.report_emoji --workdir=RUN --data=DIR --output=DIR`: scores a run on emoji and draws what it makes.

On the run's --eval_data (a skin tone and a role that were never seen together) four shares are counted: captions that
are exact, that name the right role, that name the right tone, and pictures whose nearest picture of that role, in
squared pixel distance among its five tones, has the right tone (chance: one in five). Writes report.json, samples.png
and curves.png into DIR.

Shapes: B batch, N image tokens, L text tokens, S side of a picture.
"""

import dataclasses
import json

import numpy as np
from absl import flags

from itit import flags as flags_lib
from itit import samples, sheets, storage, text_encoders
from itit.backends.connect import connect
from itit.checkpoint import store
from itit.data import images
from itit.data.streams import Streams
from itit.sheets import Panel, Section, in_rows
from itit.training import runs
from itit.training.state import image_ids_of, load_state, make_state
from tools.data.emoji import TONES, read_emoji, role_and_tone
from tools.scoring.curves import draw_curves

NUM_SHOWN, COLUMNS, NUM_CYCLES, NUM_TURNS = 12, 6, 4, 6


def pictures_of_roles(data, image_size, max_pixels):
    """role -> tone -> uint8 [S, S, 3], for the roles that come in all five tones."""
    folder, roles = storage.join(data, "emoji"), {}
    for item in read_emoji(folder):
        role, tone = role_and_tone(item["caption"])
        if tone:
            roles.setdefault(role, {})[tone] = item["file"]
    complete = {role: files for role, files in roles.items() if set(files) == set(TONES)}
    return {role: {tone: _decode(storage.join(folder, file), image_size, max_pixels) for tone, file in files.items()}
            for role, files in complete.items()}  # fmt: skip


def _decode(path, image_size, max_pixels):
    with storage.open(path) as file:
        return images.decode(file.read(), image_size, max_pixels)


def nearest_tone(picture, tones):
    """The tone of the picture that is nearest to `picture`, of tone -> uint8 [S, S, 3]."""
    distance = {tone: np.square(picture.astype(float) - other).mean() for tone, other in tones.items()}
    return min(distance, key=distance.get)


def score(names, captions, made, roles):
    """The four shares, from true names, captions made and pictures made, all in one order."""
    truth, told = [role_and_tone(name) for name in names], [role_and_tone(text) for text in captions]
    right = {
        "caption_exact": [a == b for a, b in zip(captions, names, strict=True)],
        "caption_role": [a[0] == b[0] for a, b in zip(told, truth, strict=True)],
        "caption_tone": [a[1] == b[1] for a, b in zip(told, truth, strict=True)],
        "picture_tone": [nearest_tone(picture, roles[role]) == tone
                         for picture, (role, tone) in zip(made, truth, strict=True)],
    }  # fmt: skip
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def sample_sections(translator, batch, names, captions, made, words):
    """Sections of names and their pictures, of pictures and their captions, and of cycles both ways."""

    def rows(pictures, texts):
        return in_rows(list(map(Panel, pictures[:NUM_SHOWN], texts[:NUM_SHOWN])), COLUMNS)

    given = translator.pixels(batch["image_ids"][:NUM_SHOWN])
    return [
        Section("held-out names and the pictures made from them", rows(made, names)),
        Section("held-out pictures, as tokenized, and their captions", rows(given, captions)),
        *(samples.cycles(translator, words, batch[f"{kind}_ids"][:NUM_CYCLES], kind, NUM_TURNS)
          for kind in ("text", "image")),
    ]  # fmt: skip


def main(_):
    flag = flags.FLAGS
    config = runs.settings(flag.workdir)
    if store.latest_step(flag.workdir) is None:
        raise ValueError(f"--workdir={flag.workdir}: no checkpoint in it")
    backend = connect(dataclasses.replace(config.train, backend="auto"))
    state = make_state(config, backend)
    step, *_ = store.restore(flag.workdir, lambda _, *saved: load_state(state, *saved, flag.workdir, backend))
    detokenizer = text_encoders.tokenizer(config)

    def words(ids):
        return detokenizer.decode(ids.cpu().numpy())

    batch = backend.to_device(Streams(config).sample_batch(flag.num_test))
    batch["image_ids"] = backend.sampler(image_ids_of, batch, state)
    translator = samples.Translator(state, config, backend, step=0)
    roles = pictures_of_roles(flag.data, config.data.image_size, config.data.max_image_pixels)
    with state.averaged():
        names, captions = words(batch["text_ids"]), words(translator.captions(batch["image_ids"]))
        made = translator.pixels(translator.pictures(batch["text_ids"]))
        report = {"step": step, "num_test": flag.num_test} | score(names, captions, made, roles)
        sections = sample_sections(translator, batch, names, captions, made, words)
    storage.make_dirs(flag.output)
    sheets.write(storage.join(flag.output, "samples.png"), sections)
    draw_curves(flag.workdir, storage.join(flag.output, "curves.png"))
    storage.write_bytes(storage.join(flag.output, "report.json"), json.dumps(report, indent=1).encode())
    print(json.dumps(report))


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("data", None, "Folder with emoji/.", required=True)
    flags.DEFINE_string("output", None, "Folder for the report.", required=True)
    flags.DEFINE_integer("num_test", 287, "Held-out emoji.", lower_bound=1)


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
