"""`python -m tools.start PICTURES [TEXTS]`: from one's own pictures to a trained ITIT and a report, in one command.

PICTURES is a folder with all that is below it: the text in x.txt is the caption of x.jpg, or a file of captions names
the pictures (--captions; captions.csv or metadata.jsonl in the folder is found). Pictures without a caption are
unpaired. TEXTS are files of texts, one a line (.txt, .gz, .zst), or a folder of such files: unpaired texts.

Each step prints its commands, which may be typed as well. Interrupted, it goes on with the same command; with a larger
--num_steps or --minutes it trains on. What lies in --output: see own/pipeline.py. Further flags go to itit.train and
win over launch/flagfiles/own.cfg, whose head says what to change first.
"""

import dataclasses
import difflib
import os
import sys

from absl import flags as absl_flags

from itit import flagfiles, flags, storage
from itit.config import Config, VqganConfig, knob, values_of
from tools.own import pipeline, steps


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is this command's own."""

    output: str = knob("runs/own", "Folder for all of it.")
    captions: str = knob("", "File of captions: .csv, .tsv, .jsonl or .json that names pictures of PICTURES.")
    num_steps: int | None = knob(None, "Steps of ITIT's training; by default those of own.cfg.")
    minutes: float | None = knob(None, "In their place: about how long it trains. The speed is measured first.")
    image_size: int = knob(64, "Side in pixels that pictures are resized and cropped to.")
    held_out: float = knob(0.1, "Share of the pairs that is never trained on, for scores.")
    num_text_tokens: int = knob(32, "Text tokens with the end; longer texts are cut.")
    vocab_size: int | None = knob(None, "Pieces of the vocabulary; by default as many as the texts need.")
    tokenizer: str = knob("launch/flagfiles/own_vqgan.cfg", "Flagfile of the image tokenizer.")
    max_bad_records: int = knob(1000, "Pictures and texts that may be damaged; they are named and left out.")
    backend: str = knob("auto", "Where to run; auto takes cuda if there is a GPU, else cpu.", ("auto", "cpu", "cuda"))


def take_words(argv):
    """Removes what stands before the first flag and returns it."""
    end = next((place for place, word in enumerate(argv[1:], 1) if word.startswith("-")), len(argv))
    words, argv[1:end] = argv[1:end], []
    return words


def take_training(argv):
    """Removes the flags that are none of this command's own, and returns them."""
    own = {*absl_flags.FLAGS, "help", "helpshort", "helpfull"}
    training = [flag for flag in argv[1:] if flag.startswith("-") and _name(flag) not in own]
    argv[1:] = [flag for flag in argv[1:] if flag not in training]
    return training


def _name(flag):
    return flag.lstrip("-").partition("=")[0]


def check(words, settings, training):
    """Raises ValueError, one line, for what would end a later step: before the first."""
    if not words:
        raise ValueError("name a folder of pictures: python -m tools.start PICTURES [TEXTS]")
    pictures = words[0]
    if storage.is_remote(pictures) or storage.is_remote(settings.output):
        raise ValueError(f"{pictures}, --output={settings.output}: must be local; the single commands take gs://")
    if not os.path.isdir(pictures):
        hint = "; a file of captions is given by --captions, beside the folder" if os.path.isfile(pictures) else ""
        raise ValueError(f"{pictures}: no such folder of pictures{hint}")
    if os.path.commonpath([real := os.path.realpath(pictures), os.path.realpath(settings.output)]) == real:
        raise ValueError(f"--output={settings.output}: lies in {pictures}, whose pictures it would be; name another")
    if set("*?[],@") & set(settings.output):
        raise ValueError(f"--output={settings.output}: must have none of * ? [ ] , @, which mean something in patterns")
    if settings.minutes is not None and (settings.num_steps or settings.minutes <= 0):
        raise ValueError(f"--minutes={settings.minutes}: must be above 0, without --num_steps")
    if not 0 < settings.held_out < 1:
        raise ValueError(f"--held_out={settings.held_out}: must be above 0 and below 1")
    known = values_of(Config())
    for name in map(_name, training):
        if name in pipeline.DERIVED:
            raise ValueError(f"--{name}: is set here; type the commands that are printed to give another")
        if name not in known and name.removeprefix("no") not in known:
            near = difflib.get_close_matches(name, [*known, *values_of(settings)], 1)
            hint = f"; did you mean --{near[0]}?" if near else "; see --help, and that of itit.train"
            raise ValueError(f"--{name}: no such flag{hint}")
    check_side(settings)
    pipeline.config_of(settings, training)


def check_side(settings):
    """Raises ValueError where the tokenizer cannot cut pictures of this side into tokens."""
    values = absl_flags.FlagValues()
    flags.define(VqganConfig(), values)
    values(["tokenizer", *flagfiles.read(settings.tokenizer)], known_only=True)
    factor = flags.from_flags(VqganConfig(), values).factor
    if settings.image_size < factor or settings.image_size % factor:
        raise ValueError(f"--image_size={settings.image_size}: must be a multiple of {factor}, the side of a token of "
                         f"{settings.tokenizer}")  # fmt: skip


def main(_):
    settings, training = flags.from_flags(Settings()), flagfiles.expand(TRAINING)
    check(WORDS, settings, training)
    made = pipeline.Pipeline(settings, WORDS[0], ",".join(WORDS[1:]), training)
    with steps.alone(settings.output) as lock:
        print(*made.begin(), sep="\n", flush=True)
        code = steps.carry_out(made.steps(), made.LENGTH, lock)
        if code:
            sys.exit(code)
    print(f"done: {made.at('report.md')}\nto try it: python -m tools.demo --workdir={made.workdir}\n"
          f"to train on: the same command with more than --num_steps={made.step()}")  # fmt: skip


if __name__ == "__main__":
    WORDS = take_words(sys.argv)
    flags.define(Settings())
    TRAINING = take_training(sys.argv)
    flags.run_main(main)
