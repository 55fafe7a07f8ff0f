"""`python -m tools.score_alignment --pictures=DIR --clip=FOLDER`: do pictures show what their prompts say?

DIR is what tools.generate wrote (index.jsonl). `--clip`: folder of a CLIP as Hugging Face has it, on disk; 100 times
the mean cosine of picture and prompt. `--scenes`, where the prompts are Scenes: the share of pictures that show exactly
what the prompt says, and the same by number of objects.
"""

import dataclasses
import json

import numpy as np
import tqdm
from absl import flags

from itit import flags as flags_lib
from itit import storage
from itit.backends.connect import connect
from itit.config import DataConfig, TrainConfig
from itit.data import images, scenes
from itit.scores.scenes import exact, exact_by_objects
from tools.scoring import alignment


def pixels(path, image_size):
    """uint8 [S, S, 3]."""
    return images.decode(storage.read_bytes(path), image_size, DataConfig.max_image_pixels)


def score_clip(pairs, clip, batch_size):
    """JSON values. `pairs`: of `alignment.read_index`."""
    cosines = []
    for start in tqdm.tqdm(range(0, len(pairs), batch_size), "scoring", unit=" batches", leave=False):
        part = pairs[start : start + batch_size]
        part += part[-1:] * (batch_size - len(part))  # one shape for all, so that XLA compiles once
        shown = np.stack([pixels(path, clip.image_size) for _, path in part])
        cosines.append(clip(shown, [prompt for prompt, _ in part])[: len(pairs) - start])
    return {"clip_score": alignment.clip_score(np.concatenate(cosines)), "num_pictures": len(pairs)} | clip.stamp


def score_scenes(pairs):
    """JSON values."""
    truth = [alignment.scene_of(prompt) for prompt, _ in pairs]
    found = [scenes.read(pixels(path, scenes.IMAGE_SIZE)) for _, path in pairs]
    return {"picture_score": exact(found, truth), "picture_score_by_objects": exact_by_objects(found, truth),
            "num_pictures": len(pairs)}  # fmt: skip


def main(_):
    flag = flags.FLAGS
    if bool(flag.clip) == flag.scenes:
        raise ValueError("give --clip=FOLDER or --scenes, one of the two")
    pairs = alignment.read_index(flag.pictures)
    if flag.scenes:
        result = score_scenes(pairs)
    else:
        where = connect(dataclasses.replace(TrainConfig(), backend=flag.backend))
        result = score_clip(pairs, alignment.Clip(flag.clip, where), flag.batch_size)
    print(json.dumps(result))
    if flag.json:
        storage.write_bytes(flag.json, json.dumps(result, indent=1).encode())


def define_flags():
    flags.DEFINE_string("pictures", None, "Folder that tools.generate wrote.", required=True)
    flags.DEFINE_string("clip", "", "Folder with a CLIP: config.json, model.safetensors, its tokenizer.")
    flags.DEFINE_boolean("scenes", False, "Count exactly: the prompts are Scenes.")
    flags.DEFINE_string("backend", "auto", "auto, cpu, cuda or xla.")
    flags.DEFINE_integer("batch_size", 32, "Pictures at once.", lower_bound=1)
    flags.DEFINE_string("json", "", "File for the result.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
