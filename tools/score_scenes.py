"""`python -m tools.score_scenes --workdir=RUN --test=DIR --output=FILE.json`: everything that is counted on Scenes.

For each test split of DIR (`seen-*`, `unpaired-*`, `never-*`, from make_scenes or scene_ids): captions and pictures
exactly right, by number of objects and by attribute, CIDEr of the captions, and the share of scenes that a cycle has
kept after each of its turns (paper figure 6). Beside them the step and the curves of the run's own evaluation.

Shapes: B batch, N image tokens, L text tokens.
"""

import dataclasses
import json

import tqdm
from absl import flags

from itit import flags as flags_lib
from itit import samples, storage, text_encoders
from itit.backends.connect import connect
from itit.checkpoint import store
from itit.data import scenes
from itit.data.streams import Streams
from itit.training import metrics, runs
from itit.training.state import image_ids_of, load_state, make_state
from tools.scoring import scene_scores

CHUNK = 100
CURVES = ("eval/captions_exact", "eval/pictures_exact")  # of itit/training/evaluation.py


def read_scenes(translator, ids, kind, words):
    """The scenes that ids show or tell: list of B scenes or None."""
    if kind == "image":
        return [scenes.read(picture) for picture in translator.pixels(ids)]
    return [scenes.parse(text) for text in words(ids)]


def cycles(translator, batch, truth, words, num_turns):
    """Kind of the beginning -> share of scenes intact after each turn."""
    found = {}
    for kind in ("image", "text"):
        stages, other = [], {"image": "text", "text": "image"}
        for turn, ids in enumerate(translator.turns(batch[f"{kind}_ids"], kind, num_turns)):
            stages.append(read_scenes(translator, ids, kind if turn % 2 == 0 else other[kind], words))
        found[kind] = scene_scores.intact(stages[1:], truth)
    return found


def score(translator, batch, words, num_cycles, num_turns):
    """All scores of one split, JSON values.

    Args:
      batch: "image_ids" int64 [B, N], "text_ids" int64 [B, L], captions of known scenes.
      words: int64 [B, L] -> list of str.
      num_cycles: scenes that the cycles begin with.
    """
    truth = [scenes.parse(text) for text in words(batch["text_ids"])]
    told, shown = [], []
    for start in tqdm.tqdm(range(0, len(truth), CHUNK), "scoring", unit=" chunks", leave=False):
        part = slice(start, start + CHUNK)
        told += words(translator.captions(batch["image_ids"][part]))
        made = translator.pictures(batch["text_ids"][part], f"score{start}")
        shown += read_scenes(translator, made, "image", words)
    result = {
        "captions": scene_scores.shares([scenes.parse(text) for text in told], truth),
        "pictures": scene_scores.shares(shown, truth),
        "CIDEr": scene_scores.cider(told, truth),
    }
    few = {name: ids[:num_cycles] for name, ids in batch.items()}
    return result | {"cycles": cycles(translator, few, truth[:num_cycles], words, num_turns)} if num_cycles else result


def main(_):
    flag = flags.FLAGS
    config = runs.settings(flag.workdir)
    if store.latest_step(flag.workdir) is None:
        raise ValueError(f"--workdir={flag.workdir}: no checkpoint in it")
    backend = connect(dataclasses.replace(config.train, backend=flag.backend))
    state = make_state(config, backend)
    step, *_ = store.restore(flag.workdir, lambda _, *saved: load_state(state, *saved, flag.workdir, backend))
    detokenizer = text_encoders.tokenizer(config)
    translator = samples.Translator(state, config, backend, step=0)

    def words(ids):
        return detokenizer.decode(ids.cpu().numpy())

    found = {}
    with state.averaged():
        for split in scenes.GROUPS:
            data = dataclasses.replace(config.data, eval_data=storage.join(flag.test, f"{split}-*.tfrecord"))
            streams = Streams(dataclasses.replace(config, data=data))
            batch = backend.to_device(streams.sample_batch(min(flag.num_test, streams.num_eval)))
            batch["image_ids"] = backend.sampler(image_ids_of, batch, state)
            found[split] = score(translator, batch, words, flag.num_cycles, flag.num_turns)
    curves = metrics.curves(flag.workdir)
    result = {"step": step, "device": str(backend), "scores": found,
              "curves": {name.removeprefix("eval/"): curves[name] for name in CURVES if name in curves}}  # fmt: skip
    storage.write_bytes(flag.output, json.dumps(result, indent=1).encode())
    for split, scores in found.items():
        print(f"{split}: captions exactly right {scores['captions']['exact']:.1%}, "
              f"pictures {scores['pictures']['exact']:.1%}")  # fmt: skip


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("test", None, "Folder of the test splits.", required=True)
    flags.DEFINE_string("output", None, "The .json file to write.", required=True)
    flags.DEFINE_integer("num_test", 500, "Test scenes of each split.", lower_bound=1)
    flags.DEFINE_integer("num_cycles", 100, "Of these, scenes that cycles begin with; 0: none.", lower_bound=0)
    flags.DEFINE_integer("num_turns", 4, "Turns of a cycle.", lower_bound=1)
    flags.DEFINE_string("backend", "auto", "auto, cpu or cuda.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
