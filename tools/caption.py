"""`python -m tools.caption --model=DIR --pictures=PICTURES --output=DIR`: texts from pictures, by beam search.

PICTURES is a folder (with all that is below it), patterns of picture files or of TFRecord shards with `image`, or
COCO's json (its pictures lie in --images). Written: captions.jsonl, captions.json (results as COCO has them) and
sheet.png. A killed export carries on with the same command, and so does one that damaged pictures ended, with a larger
--max_bad_records; --host_index and --num_hosts share one among processes.
"""

from absl import flags

from itit import flags as flags_lib
from itit.console import counted
from tools.data.damaged import Damage
from tools.generation import generation, inputs
from tools.spread import distribution


def define_flags():
    for settings in (generation.Loading(), generation.Telling(), generation.Sharing()):
        flags_lib.define(settings)
    flags.DEFINE_string("pictures", None, "Folder, patterns of pictures or of TFRecord shards, or COCO's json.",
                        required=True)  # fmt: skip
    flags.DEFINE_string("images", "", "Folder of the pictures that a json in --pictures names.")
    flags.DEFINE_integer("num_pictures", 0, "Describe the first of them; 0: all.", lower_bound=0)
    flags.DEFINE_string("output", None, "Folder.", required=True)
    flags.DEFINE_integer("max_bad_records", 0, "Damaged pictures to leave out, each named, before it stops.",
                         lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("num_shown", 64, "Pictures on the contact sheet.", lower_bound=1)


def main(_):
    flag = flags.FLAGS
    damage = Damage(flag.max_bad_records, "pictures")
    pictures = inputs.pictures(flag.pictures, flag.images, damage.add)
    pictures = pictures[: flag.num_pictures] if flag.num_pictures else pictures
    loading, sharing = flags_lib.from_flags(generation.Loading()), distribution.of_flags(generation.Sharing())
    model, telling = generation.load(loading, shared=True), flags_lib.from_flags(generation.Telling())
    whole = generation.export_captions(
        model, pictures, flag.output, telling, loading.batch_size, sharing, flag.num_shown, damage
    )
    told = f"captions of {counted(len(pictures), 'picture')}"
    told += f", but for {damage.count} damaged" if damage.count else ""
    print(f"{flag.output}: " + (told if whole else "done here; other hosts are not yet"))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
