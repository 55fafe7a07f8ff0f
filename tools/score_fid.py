"""`python -m tools.score_fid --pictures=DIR --reference=DIR --inception=FILE`: FID between two sets of pictures.

Each set is a folder, patterns of pictures or TFRecord shards, or an .npz of statistics (`--save` writes one, those of
other FID tools are read). Nothing is fetched: `--inception` is torch-fidelity's file of weights, its hash checked.
`--features=FILE` takes another network (SqueezeNet, VGG16); that distance is never called FID. The result names N,
resize, crop, extractor, hashes, and how many damaged pictures were left out (--max_bad_records).
"""

import dataclasses
import json

from absl import flags

from itit import flags as flags_lib
from itit import storage
from itit.backends.connect import connect
from itit.config import TrainConfig
from tools.data.damaged import Damage
from tools.scoring import fid, frechet, picture_features


def main(_):
    flag = flags.FLAGS
    where = connect(dataclasses.replace(TrainConfig(), backend=flag.backend))
    extractor = picture_features.of(flag.inception, flag.features, where, flag.force)
    keep = flag.kid or flag.precision_recall
    damage = Damage(flag.max_bad_records, "pictures")
    made = fid.measure(flag.pictures, extractor, flag.image_size, flag.batch_size, keep, damage)
    if flag.save:
        frechet.write(flag.save, made[0])
        print(f"{flag.save}: statistics of {made[0].count} pictures")
    if not flag.reference:
        return
    reference = fid.measure(flag.reference, extractor, flag.image_size, flag.batch_size, keep, damage)
    result = fid.compare(made, reference, extractor, flag.kid, flag.precision_recall, flag.force)
    print(fid.line(result))
    if flag.json:
        storage.write_bytes(flag.json, json.dumps(result, indent=1).encode())


def define_flags():
    flags.DEFINE_string("pictures", None, "Folder, patterns, or .npz of statistics.", required=True)
    flags.DEFINE_string("reference", "", "The same, to compare with; empty: only --save.")
    flags.DEFINE_string("inception", "", f"torch-fidelity's {picture_features.INCEPTION_FILE}.")
    flags.DEFINE_string("features", "", "Weights of another network, safetensors or npz.")
    flags.DEFINE_string("backend", "auto", "auto, cpu, cuda or xla.")
    flags.DEFINE_integer("image_size", 0, "Resize the short side to this and cut out the centre; 0: as they are.")
    flags.DEFINE_integer("batch_size", 32, "Pictures at once.", lower_bound=1)
    flags.DEFINE_integer("max_bad_records", 0, "Damaged pictures of both sets together to leave out, each counted and "
                         "named, before it stops.", lower_bound=0)  # fmt: skip
    flags.DEFINE_boolean("kid", False, "Kernel distance, too.")
    flags.DEFINE_boolean("precision_recall", False, "Precision and recall, too.")
    flags.DEFINE_boolean("force", False, "Also fewer than 2,048 pictures, or other weights; marked in the result.")
    flags.DEFINE_string("save", "", "Write the statistics of --pictures, .npz.")
    flags.DEFINE_string("json", "", "File for the result.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
