"""`python -m tools.cycle --model=DIR --prompt="a red circle" --num_turns=6 --output=DIR`: text -> picture -> text ...

Starts from texts (--prompt, --prompts) or from pictures (--pictures; see tools.generate and tools.caption for both) and
goes on for --num_turns, each from the one before; pictures go on as codes, as in training. Written: cycle.png, a row
each as in the paper's figures 6 and 10, NUMBER-TURN.png of each picture, and index.jsonl.
"""

import tqdm
from absl import flags
from PIL import Image

from itit import flags as flags_lib
from itit import sheets, storage
from itit.console import counted
from tools.generation import generation, inputs


def read_starts(flag, size):
    """(list of str or of PIL images, list of what to call them). Raises ValueError unless one of the kinds is given."""
    if bool(flag.prompt) + bool(flag.prompts) + bool(flag.pictures) != 1:
        raise ValueError("give --prompt=TEXT (as often as wanted), --prompts=FILE or --pictures=PICTURES, one of them")
    if flag.pictures:
        found = inputs.pictures(flag.pictures, flag.images)[: flag.num_cycles]
        return [Image.fromarray(inputs.load(picture, size)) for picture in found], [picture.name for picture in found]
    texts = flag.prompt or [prompt.text for prompt in inputs.prompts(flag.prompts)]
    return texts[: flag.num_cycles], texts[: flag.num_cycles]


def run(model, starts, num_turns, settings, batch_size):
    """list of cycles: lists of 1 + num_turns str and PIL images."""
    cycles, decode = [], generation.decode_of(settings)
    with tqdm.tqdm(total=len(starts) * (num_turns + 1), desc="cycles", unit=" stages") as bar:
        for first in range(0, len(starts), batch_size):
            part = starts[first : first + batch_size]
            numbers = range(first, first + len(part))
            stages = model.cycle(
                part, num_turns, settings.seed, numbers, lambda stage: bar.update(len(stage)), **decode
            )
            cycles += [list(cycle) for cycle in zip(*stages, strict=True)]
    return cycles


def write(output, names, cycles):
    """cycle.png, the pictures and index.jsonl."""
    storage.make_dirs(output)
    lines = []
    for number, (name, cycle) in enumerate(zip(names, cycles, strict=True)):
        stages = []
        for turn, stage in enumerate(cycle):
            stages.append({"text": stage} if isinstance(stage, str) else {"file": f"{number:06d}-{turn:02d}.png"})
            if not isinstance(stage, str):
                with storage.writer(storage.join(output, stages[-1]["file"])) as file:
                    stage.save(file, "PNG")
        lines.append({"index": number, "start": name, "stages": stages})
    generation.write_lines(storage.join(output, "index.jsonl"), lines)
    title = "The framed one is given, all else is made, each from the one before"
    rows = [[sheets.Panel(None, s) if isinstance(s, str) else sheets.Panel(s) for s in cycle] for cycle in cycles]
    sheets.write(storage.join(output, "cycle.png"), [sheets.Section(title, rows, joined=True)])


def define_flags():
    for settings in (generation.Loading(), generation.Drawing()):
        flags_lib.define(settings)
    flags.DEFINE_multi_string("prompt", [], "A text to start from; may be given again and again.")
    flags.DEFINE_string("prompts", "", "Texts to start from: .txt, COCO's .json, or patterns of TFRecord shards.")
    flags.DEFINE_string("pictures", "", "Pictures to start from: folder, patterns of files or shards, COCO's json.")
    flags.DEFINE_string("images", "", "Folder of the pictures that a json in --pictures names.")
    flags.DEFINE_integer("num_turns", 6, "How often one is made from the other.", lower_bound=1)
    flags.DEFINE_integer("num_cycles", 8, "Start from the first of them.", lower_bound=1)
    flags.DEFINE_string("output", None, "Folder.", required=True)


def main(_):
    flag = flags.FLAGS
    loading = flags_lib.from_flags(generation.Loading())
    model, settings = generation.load(loading), flags_lib.from_flags(generation.Drawing())
    starts, names = read_starts(flag, model.picture_size)
    write(flag.output, names, run(model, starts, flag.num_turns, settings, loading.batch_size))
    print(f"{flag.output}: {counted(len(starts), 'cycle')} of {counted(flag.num_turns, 'turn')}")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
