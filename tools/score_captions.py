"""`python -m tools.score_captions --references=R --results=C`: CIDEr, BLEU and ROUGE-L of captions, without Java.

`--references`: COCO's json of captions, or what tools.caption was given as --pictures: a folder with x.txt beside
x.jpg, or patterns of TFRecord shards with `text`. `--results`: a JSON list of {"image_id", "caption"}, as that command
writes it. Images without a result are left out, as COCO's own evaluation of a subset does, and counted.
"""

import json
import sys

from absl import flags

from itit import flags as flags_lib
from itit import storage
from itit.scores import captions as captions_lib
from tools.data.coco_json import read_references, read_results
from tools.generation import inputs

SMALL = ("warning: {} images: CIDEr weighs words by how many of the images have them; below {} compare it only with "
         "scores of these very images")  # fmt: skip


def pair(results, references, place):
    """Captions and their references in one order, that of the references."""
    for image_id in results:
        if image_id not in references:
            raise ValueError(f"{place}: image_id {image_id!r} has no reference")
    ids = [image_id for image_id in references if image_id in results]
    return [results[i] for i in ids], [references[i] for i in ids]


def table(scores, statistics):
    """Lines for a person."""
    percent = " ".join(f"{name} {100 * scores[name]:.2f}" for name in scores if name != "num_images")
    return [
        f"{scores['num_images']} images; times 100: {percent}",
        f"{statistics['words']:.2f} words a caption, {statistics['vocabulary']} different ones; "
        f"{statistics['distinct']:.1%} of the captions distinct, {statistics['repeating']:.1%} repeat themselves, "
        f"{statistics['empty']:.1%} empty",
    ]


def main(_):
    flag = flags.FLAGS
    is_json = flag.references.lower().endswith(".json")
    references = read_references(flag.references) if is_json else inputs.references(flag.references)
    results = read_results(flag.results)
    captions, truth = pair(results, references, flag.results)
    scores, statistics = captions_lib.score(captions, truth), captions_lib.statistics(captions)
    print("\n".join(table(scores, statistics)))
    if len(captions) < len(references):
        print(f"{len(references) - len(captions)} of {len(references)} images have no caption and are left out")
    if len(captions) < captions_lib.SMALL_SET:
        print(SMALL.format(len(captions), captions_lib.SMALL_SET), file=sys.stderr)
    if flag.json:
        storage.write_bytes(flag.json, json.dumps(scores | {"statistics": statistics}, indent=1).encode())


def define_flags():
    flags.DEFINE_string("references", None, "COCO json of captions; folder of pictures with their texts; patterns of "
                        "TFRecord shards.", required=True)  # fmt: skip
    flags.DEFINE_string("results", None, 'JSON list of {"image_id", "caption"}.', required=True)
    flags.DEFINE_string("json", "", "File for the scores.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
