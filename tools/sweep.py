"""`python -m tools.sweep --model=DIR --prompts=FILE --reference=DIR --inception=FILE --output=DIR`: which settings draw
the best pictures?

Every choice temperature with every guidance scale and ramp: draws the prompts, measures the distance to the reference
(FID by --inception, another by --features), and writes sweep.json and sweep.png. Killed, it carries on where it was.
"""

import dataclasses
import itertools
import json

from absl import flags
from matplotlib.figure import Figure

from itit import flags as flags_lib
from itit import storage
from itit.config import replace
from tools.generation import generation, inputs
from tools.scoring import fid, picture_features


def measure(model, prompts, reference, extractor, output, drawing, ramp, batch_size, force):
    """The result of one cell, a dict; found again where it was written down."""
    path = storage.join(output, "score.json")
    if storage.exists(path):
        return generation.read_json(path)
    model.config = replace(model.config, guidance_schedule=ramp)
    generation.export_pictures(model, prompts, output, drawing, batch_size)
    made = fid.measure(f"{output}/pictures", extractor, model.picture_size, batch_size)
    result = fid.compare(made, reference, extractor, force=force)
    storage.write_bytes(path, json.dumps(result, indent=1).encode())
    return result


def draw(path, cells, name):
    """Lines of the distance over the temperature, one a guidance scale, a panel a ramp."""
    ramps = list(dict.fromkeys(cell["ramp"] for cell in cells))
    figure = Figure((5 * len(ramps), 4), layout="constrained")
    for axes, ramp in zip(figure.subplots(1, len(ramps), sharey=True, squeeze=False)[0], ramps, strict=True):
        for scale in dict.fromkeys(cell["guidance_scale"] for cell in cells):
            points = sorted((cell["choice_temperature"], cell[name]) for cell in cells
                            if cell["ramp"] == ramp and cell["guidance_scale"] == scale)  # fmt: skip
            axes.plot(*zip(*points, strict=True), marker="o", label=f"guidance {scale:g}")
        axes.set(xlabel="choice temperature", ylabel=name, title=f"guidance {ramp}")
        axes.grid(alpha=0.3)
        axes.legend()
    with storage.writer(path) as file:
        figure.savefig(file, format="png", dpi=110)


def main(_):
    flag, loading = flags.FLAGS, flags_lib.from_flags(generation.Loading())
    prompts = inputs.prompts(flag.prompts)
    prompts = prompts[: flag.num_prompts] if flag.num_prompts else prompts
    fid.too_few(flag.force, made=len(prompts))
    model = generation.load(loading)
    extractor = picture_features.of(flag.inception, flag.features, model.backend, flag.force)
    reference = fid.measure(flag.reference, extractor, model.picture_size, loading.batch_size)
    fid.too_few(flag.force, reference=reference[0].count)
    drawing, cells = generation.Drawing(seed=flag.seed, num_decode_steps=flag.num_decode_steps), []
    grid = itertools.product(map(float, flag.temperatures), map(float, flag.guidance_scales), flag.ramps)
    for temperature, scale, ramp in grid:
        cell = {"choice_temperature": temperature, "guidance_scale": scale, "ramp": ramp}
        folder = storage.join(flag.output, f"temperature{temperature:g}_guidance{scale:g}_{ramp}")
        settings = dataclasses.replace(drawing, choice_temperature=temperature, guidance_scale=scale)
        result = measure(model, prompts, reference, extractor, folder, settings, ramp, loading.batch_size, flag.force)
        cells.append(cell | {extractor.name: result[extractor.name]})
        print(f"temperature {temperature:g}, guidance {scale:g} {ramp}: {fid.line(result)}", flush=True)
    best = min(cells, key=lambda cell: cell[extractor.name])
    report = {"best": best, "cells": cells, "too_few_pictures": result["too_few_pictures"], "stamp": result["made"]}
    storage.write_bytes(storage.join(flag.output, "sweep.json"), json.dumps(report, indent=1).encode())
    draw(storage.join(flag.output, "sweep.png"), cells, extractor.name)
    print(f"best: {json.dumps(best)}")


def define_flags():
    flags_lib.define(generation.Loading())
    flags.DEFINE_string("prompts", None, "Texts: .txt, COCO's .json, or patterns of TFRecord shards.", required=True)
    flags.DEFINE_integer("num_prompts", 0, "The first of them; 0: all.", lower_bound=0)
    flags.DEFINE_string("reference", None, "Real pictures: folder, patterns, or .npz of statistics.", required=True)
    flags.DEFINE_string("inception", "", f"torch-fidelity's {picture_features.INCEPTION_FILE}.")
    flags.DEFINE_string("features", "", "Weights of another network, safetensors or npz; then nothing is called FID.")
    flags.DEFINE_list("temperatures", ["4.5", "8", "16", "32", "48"], "Choice temperatures.")
    flags.DEFINE_list("guidance_scales", ["0", "1", "2", "4"], "Guidance scales.")
    flags.DEFINE_list("ramps", ["linear", "constant"], "Guidance schedules.")
    flags.DEFINE_integer("num_decode_steps", None, "Steps of parallel decoding; by default as trained with.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.")
    flags.DEFINE_boolean("force", False, "Also fewer than 2,048 pictures, or other weights; marked in the result.")
    flags.DEFINE_string("output", None, "Folder.", required=True)


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
