"""`python -m tools.generate --model=DIR --prompt="a small red circle" --output=DIR`: pictures from texts.

Prompts come from the line (--prompt, as often as wanted) or from --prompts: a .txt with one a line, COCO's json of
captions, or TFRecord shards with `text`. Written: pictures/NUMBER.png, index.jsonl and sheet.png. A picture depends on
--seed and its place among the prompts, not on what else is drawn. A killed export carries on with the same command;
--host_index and --num_hosts share one among processes.
"""

from absl import flags

from itit import flags as flags_lib
from itit.console import counted
from tools.generation import generation, inputs
from tools.spread import distribution


def read_prompts(texts, source, limit):
    """list of Prompt. Raises ValueError unless one of both is given."""
    if bool(texts) == bool(source):
        raise ValueError("give --prompt=TEXT (as often as wanted) or --prompts=FILE, one of the two")
    found = inputs.prompts(source) if source else [inputs.Prompt(text) for text in texts]
    return found[:limit] if limit else found


def define_flags():
    for settings in (generation.Loading(), generation.Drawing(), generation.Sharing()):
        flags_lib.define(settings)
    flags.DEFINE_multi_string("prompt", [], "A text to draw; may be given again and again.")
    flags.DEFINE_string("prompts", "", "Texts to draw: .txt, COCO's .json, or patterns of TFRecord shards.")
    flags.DEFINE_integer("num_prompts", 0, "Draw the first of them; 0: all.", lower_bound=0)
    flags.DEFINE_string("output", None, "Folder.", required=True)
    flags.DEFINE_integer("num_shown", 64, "Pictures on the contact sheet.", lower_bound=1)


def main(_):
    flag = flags.FLAGS
    prompts = read_prompts(flag.prompt, flag.prompts, flag.num_prompts)
    loading, sharing = flags_lib.from_flags(generation.Loading()), distribution.of_flags(generation.Sharing())
    model, drawing = generation.load(loading, shared=True), flags_lib.from_flags(generation.Drawing())
    whole = generation.export_pictures(
        model, prompts, flag.output, drawing, loading.batch_size, sharing, flag.num_shown
    )
    print(f"{flag.output}: " + (counted(len(prompts), "picture") if whole else "done here; other hosts are not yet"))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
