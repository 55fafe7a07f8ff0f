"""`python -m tools.report_scenes --workdir=RUN --output=DIR`: scores a run on Scenes and draws what it makes.

On the pairs of the run's --eval_data (scenes with held-out objects) two shares are counted exactly: captions that say
what the picture shows (`caption_score`), and pictures that show what the prompt says (`picture_score`); the same for
the untrained model. Writes report.json, report.md, samples.png and curves.png into DIR.

Shapes: B batch, N image tokens, L text tokens, S side of a picture.
"""

import dataclasses
import json

import tqdm
from absl import flags

from itit import checkpoint, samples, storage
from itit import flags as flags_lib
from itit.backend import connect
from itit.data import scenes
from itit.data.streams import Streams
from itit.data.text import Detokenizer
from itit.scores.scenes import exact, exact_by_objects
from itit.state import image_ids_of, load_state, make_state
from tools.drawing import draw_curves, stack, write_png

CHUNK = 100
NUM_SHOWN, NUM_CYCLES, NUM_TURNS = 12, 3, 6


def score(translator, batch, words):
    """Shares of exact captions and pictures, and how many are exact by the number of objects.

    Args:
      batch: "image_ids" int64 [B, N], "text_ids" int64 [B, L], captions of known scenes.
      words: int64 [B, L] -> list of str.
    """
    truth = [scenes.parse(text) for text in words(batch["text_ids"])]
    captions, pictures = [], []
    for start in tqdm.tqdm(range(0, len(truth), CHUNK), "scoring", unit=" chunks", leave=False):
        part = slice(start, start + CHUNK)
        captions += [scenes.parse(text) for text in words(translator.captions(batch["image_ids"][part]))]
        made = translator.pixels(translator.pictures(batch["text_ids"][part], f"score{start}"))
        pictures += [scenes.read(picture) for picture in made]
    result = {}
    for name, found in (("caption", captions), ("picture", pictures)):
        result |= {f"{name}_score": exact(found, truth), f"{name}_score_by_objects": exact_by_objects(found, truth)}
    return result


def draw_samples(translator, batch, words):
    """Prompts and their pictures, pictures and their captions, and cycles both ways: uint8 [height, width, 3]."""

    def rows(panels):
        return [panels[i : i + 6] for i in range(0, len(panels), 6)]

    def mark(good, text):
        return ("right: " if good else "WRONG: ") + text

    ids, pictures = batch["text_ids"][:NUM_SHOWN], batch["image_ids"][:NUM_SHOWN]
    prompts, truth = words(ids), [scenes.parse(text) for text in words(ids)]
    made, given = translator.pixels(translator.pictures(ids)), translator.pixels(pictures)
    captions = words(translator.captions(pictures))
    drawn = [samples.Panel(p, mark(scenes.read(p) == s, t)) for p, s, t in zip(made, truth, prompts, strict=True)]
    told = [samples.Panel(p, mark(scenes.parse(t) == s, t)) for p, s, t in zip(given, truth, captions, strict=True)]
    sheets = [samples.sheet("prompts (held-out scenes) and the pictures made from them", rows(drawn)),
              samples.sheet("pictures (held-out scenes) and the captions made from them", rows(told))]  # fmt: skip
    for kind, start in (("text", ids), ("image", pictures)):
        cycle = samples.cycle_rows(translator, words, start[:NUM_CYCLES], kind, NUM_TURNS)
        sheets.append(samples.sheet(f"cycles: the {kind} on the left is given, all else is made, each from the one "
                                    "before (below a picture: its caption)", cycle))  # fmt: skip
    return stack(sheets)


def write_markdown(report, path, with_curves):
    rows = [("trained", report), ("untrained", report["untrained"])]
    lines = [
        "# Scenes: what the model has learned",
        "",
        f"{report['num_test']} test scenes; each holds an object (shape, colour, size and place together) that no",
        f"training picture and no training text shows. Step {report['step']}, {report['minutes']} minutes in all.",
        "",
        "| | captions exactly right | pictures exactly right |",
        "|---|---|---|",
        *(f"| {name} | {r['caption_score']:.1%} | {r['picture_score']:.1%} |" for name, r in rows),
        "",
        "By number of objects:",
        "",
        "| objects | captions | pictures |",
        "|---|---|---|",
        *(f"| {k} | {share:.1%} | {report['picture_score_by_objects'][k]:.1%} |"
          for k, share in report["caption_score_by_objects"].items()),
        "",
        "![samples](samples.png)",
        "",
        *(["![losses](curves.png)", ""] if with_curves else []),
    ]  # fmt: skip
    storage.write_bytes(path, "\n".join(lines).encode())


def main(_):
    flag = flags.FLAGS
    config = flags_lib.from_flagfile(storage.join(flag.workdir, "resolved.cfg"))
    if checkpoint.latest_step(flag.workdir) is None:
        raise ValueError(f"--workdir={flag.workdir}: no checkpoint in it")
    backend = connect(dataclasses.replace(config.train, backend=flag.backend))
    state = make_state(config, backend)
    batch = backend.to_device(Streams(config).sample_batch(flag.num_test))
    batch["image_ids"] = backend.sampler(image_ids_of, batch, state)
    detokenizer = Detokenizer(config.data.vocabulary)

    def words(ids):
        return detokenizer.decode(ids.cpu().numpy())

    translator = samples.Translator(state, config, backend, step=0)
    untrained = score(translator, {key: value[:CHUNK] for key, value in batch.items()}, words)
    step, *_ = checkpoint.restore(flag.workdir, lambda _, *saved: load_state(state, *saved, flag.workdir, backend))
    with state.averaged():
        report = {"step": step, "num_test": flag.num_test} | score(translator, batch, words)
        picture = draw_samples(translator, batch, words)
    report |= {"untrained": untrained, "minutes": round(flag.minutes, 1)}
    storage.make_dirs(flag.output)
    write_png(storage.join(flag.output, "samples.png"), picture)
    drawn = draw_curves(flag.workdir, storage.join(flag.output, "curves.png"))
    write_markdown(report, storage.join(flag.output, "report.md"), drawn)
    storage.write_bytes(storage.join(flag.output, "report.json"), json.dumps(report, indent=1).encode())
    print(f"captions exactly right: {report['caption_score']:.1%} (untrained {untrained['caption_score']:.1%})")
    print(f"pictures exactly right: {report['picture_score']:.1%} (untrained {untrained['picture_score']:.1%})")
    print(f"see {storage.join(flag.output, 'report.md')}")


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("output", None, "Folder for the report.", required=True)
    flags.DEFINE_integer("num_test", 500, "Test scenes.", lower_bound=1)
    flags.DEFINE_float("minutes", 0.0, "How long everything took, for the record.")
    flags.DEFINE_string("backend", "auto", "auto, cpu or cuda.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
