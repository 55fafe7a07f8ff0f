"""`python -m tools.evaluate --protocol=NAME --model=DIR --output=DIR ...`: the paper's evaluations, a command each.

    coco_zero_shot, coco_finetuned   CIDEr on Karpathy's test images: --captions=captions_val2014.json
                                     --images=val2014 --image_list=karpathy_test_images.txt
    coco_fid30k                      FID of 30,000 prompts: --captions=captions_val2014.json --reference=val2014
                                     --inception=FILE; those of train2014 for the paper's words

Writes pictures or captions, and result.json; prints a line for a table. Killed, it carries on; --host_index and
--num_hosts share the work. --force also takes less than the whole protocol, and the result says so.
"""

import json

from absl import flags

from itit import config, storage
from itit import flags as flags_lib
from tools.generation import generation
from tools.scoring import picture_features, protocols
from tools.spread import distribution


def check(flag):
    """Raises ValueError, one line, for what a protocol needs and was not given, before anything is loaded."""
    if flag.protocol == protocols.FID:
        if bool(flag.inception) == bool(flag.features):
            raise ValueError("--protocol=coco_fid30k: give --inception=FILE or --features=FILE, one of the two")
        if not flag.reference:
            raise ValueError("--reference is empty: give the folder of real pictures, or their statistics (.npz)")
        if flag.num_prompts != protocols.NUM_PROMPTS and not flag.force:
            raise ValueError(
                f"--num_prompts={flag.num_prompts}: the protocol has {protocols.NUM_PROMPTS}; --force takes it"
            )
    elif not flag.images:
        raise ValueError("--images is empty: give the folder of the pictures")


def evaluate(flag, loading, sharing):
    """Result as JSON values, or None."""
    if flag.protocol in protocols.CAPTIONS:
        telling = flags_lib.from_flags(generation.Telling())
        return protocols.evaluate_captions(
            generation.load(loading, shared=True), flag.captions, flag.image_list, flag.images, flag.output, telling,
            loading.batch_size, sharing, flag.force,
        )  # fmt: skip
    drawing = flags_lib.from_flags(generation.Drawing())
    prompts = protocols.choose_prompts(flag.captions, flag.num_prompts, flag.list_seed)
    model = generation.load(loading, shared=True)
    extractor = picture_features.of(flag.inception, flag.features, model.backend, flag.force)
    return protocols.evaluate_pictures(
        model, prompts, flag.reference, extractor, flag.output, drawing, loading.batch_size, sharing, flag.force
    )


def main(_):
    flag = flags.FLAGS
    check(flag)
    split = protocols.split_of(flag.captions, flag.split)
    loading, sharing = flags_lib.from_flags(generation.Loading()), distribution.of_flags(generation.Sharing())
    result = evaluate(flag, loading, sharing)
    if result is None:
        print(f"{flag.output}: done here; other hosts are not yet")
        return
    settings = {name: flag[name].value for name, _, _ in config.fields(loading)}
    for part in (generation.Drawing(), generation.Telling()):
        settings |= {name: flag[name].value for name, _, _ in config.fields(part)}
    result = {"protocol": flag.protocol, "split": split, "settings": settings} | result
    storage.write_bytes(storage.join(flag.output, "result.json"), json.dumps(result, indent=1).encode())
    print(protocols.row(flag.protocol, split, result))


def define_flags():
    for settings in (generation.Loading(), generation.Drawing(), generation.Telling(), generation.Sharing()):
        flags_lib.define(settings)
    flags.DEFINE_enum("protocol", None, [*protocols.CAPTIONS, protocols.FID], "Which evaluation.", required=True)
    flags.DEFINE_string("captions", None, "COCO's json of captions.", required=True)
    flags.DEFINE_string("split", "", "Of COCO, for the label; by default as the names of files say, which are checked.")
    flags.DEFINE_string("images", "", "Folder of the pictures to describe.")
    flags.DEFINE_string("image_list", "", "Karpathy's list of them.")
    flags.DEFINE_string("reference", "", "Real pictures: folder, patterns, or .npz of statistics.")
    flags.DEFINE_string("inception", "", f"torch-fidelity's {picture_features.INCEPTION_FILE}.")
    flags.DEFINE_string("features", "", "Weights of another network, safetensors or npz; then nothing is called FID.")
    flags.DEFINE_integer("num_prompts", protocols.NUM_PROMPTS, "Pictures to draw.", lower_bound=2)
    flags.DEFINE_integer("list_seed", 0, "Seed of the list of prompts.")
    flags.DEFINE_boolean("force", False, "Also less than the whole protocol; marked in the result.")
    flags.DEFINE_string("output", None, "Folder.", required=True)


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
