"""`python -m tools.train_vqgan --data=SHARDS --output=DIR`: trains the image tokenizer on pictures of TFRecord shards.

As it stands: reconstruction (L2 and a fifth of L1), commitment, a codebook by running means with dead codes revived;
seconds to minutes on a processor. With `--perceptual`, `--adversarial_weight` and `--ema_decay` it is MaskGIT's recipe
(see vqgan_step.py). One processor or GPU, or all chips of a TPU pod (`--backend`).

Writes config.json, model.safetensors and reconstructions.png (pictures, of `--eval_data` where given, and below what
their codes give), TensorBoard curves and pictures, and checkpoints into DIR. A killed run carries on; same flags, same
weights.

Shapes: B batch, S picture side.
"""

import dataclasses
import math
import sys

import numpy as np
from absl import flags

from itit import flags as flags_lib
from itit import sheets, storage
from itit.backends.connect import connect
from itit.checkpoint import store, weightsdir
from itit.config import VqganConfig, knob
from tools.training import loop, run_flags, vqgan_step
from tools.training.pictures import Pictures

MAX_EVAL_PICTURES = 1024
TOKENS_A_CODE = 32  # that the use of the codes is counted over
RUN = run_flags.section(log_every=20, sample_every=1000, checkpoint_every=200, keep_last=2)


@dataclasses.dataclass(frozen=True)
class Data:
    """What it is trained on."""

    data: str | None = knob(None, "TFRecord shards with pictures, comma-separated patterns.")
    eval_data: str = knob("", "Shards of held-out pictures, for pictures and PSNR; empty: the first batch.")
    crop_from: int = knob(0, "Side that pictures are read at, to be cut to image_size at random; 0: centre alone.")
    random_flip: bool = knob(False, "Flip half of the pictures left to right.")


def psnr(pixels, drawn):
    """Peak signal-to-noise ratio in dB of uint8 arrays, over all their pixels together."""
    error = np.square(pixels.astype(np.float64) - drawn).mean()
    return 10 * math.log10(255**2 / max(error, 1e-9))


def reconstructions(state, pixels, batch_size, backend):
    """(codes int64 [B, N], uint8 [B, S, S, 3]) of pixels uint8 [B, S, S, 3], by the averaged weights, on the host."""
    found = []
    with state.averaged():
        for start in range(0, len(pixels), batch_size):
            part = backend.to_device({"images": pixels[start : start + batch_size]}, whole=True)["images"]
            ids, drawn = backend.sampler(vqgan_step.reconstruct, state.model.vqgan, part)
            found.append(backend.on_host({"ids": ids, "pixels": drawn}))
    return tuple(np.concatenate([part[name].numpy() for part in found]) for name in ("ids", "pixels"))


def compared(pixels, drawn):
    """What is drawn of them, uint8 [B, S, S, 3], below pictures, as arguments of `sheets.draw`."""
    rows = {"pictures": pixels, "what their codes give": drawn}
    sections = [sheets.Section(title, [list(map(sheets.Panel, row))]) for title, row in rows.items()]
    return sections, max(sheets.SIDE, pixels.shape[1])


def num_codes_used(state, pictures, config, batch_size, backend):
    """How many codes are used at least once in the first TOKENS_A_CODE * C tokens of the training order."""
    used, tokens = set(), 0
    for step in range(-(-TOKENS_A_CODE * config.codebook_size // (batch_size * config.grid**2))):
        ids, _ = reconstructions(state, pictures.batch(step)["images"], batch_size, backend)
        used.update(np.unique(ids).tolist())
        tokens += ids.size
    return len(used), tokens


def finish(state, config, pictures, held_out, run, backend, batch_size):
    """Writes the weights and a picture of reconstructions, and says how good they are."""
    shown = held_out[: run.num_samples]
    ids, drawn = reconstructions(state, held_out, batch_size, backend)
    used, tokens = num_codes_used(state, pictures, config, batch_size, backend)
    with state.averaged():
        tensors = backend.on_host(state.model.vqgan.state_dict())
    if not backend.hosts.leads:
        return
    weightsdir.save(run.workdir, tensors, config)
    sheets.write(storage.join(run.workdir, "reconstructions.png"), *compared(shown, drawn[: len(shown)]))
    print(f"{run.workdir}: {ids.shape[1]} tokens a picture, PSNR {psnr(held_out, drawn):.1f} dB of {len(held_out)} "
          f"pictures, {used} of {config.codebook_size} codes used in {tokens} tokens of training pictures")  # fmt: skip


def train(config, recipe, data, run, flag_values):
    """Trains and writes the tokenizer. Returns the exit code."""
    recipe.check(config.image_size)
    backend = connect(run)
    sizes = dict(image_size=config.image_size, batch_size=recipe.batch_size, seed=run.seed)
    pictures = Pictures("data", data.data, **sizes, host_index=backend.hosts.index, num_hosts=backend.hosts.count,
                        crop_from=data.crop_from, random_flip=data.random_flip)  # fmt: skip
    if data.eval_data:
        held_out = Pictures("eval_data", data.eval_data, **sizes).first(MAX_EVAL_PICTURES)
    else:
        held_out = pictures.sample(run.num_samples)
    state = vqgan_step.make_state(config, recipe, run.seed, backend)

    def train_step(batch, step):
        return vqgan_step.step(state, batch["images"], step, recipe, run.seed, backend)

    def show(metrics, step):
        _, drawn = reconstructions(state, held_out, recipe.batch_size, backend)
        picture = sheets.draw(*compared(held_out[: run.num_samples], drawn[: run.num_samples]))
        metrics.image(step, "samples/reconstructions", picture)
        metrics.scalars(step, {"eval/psnr": psnr(held_out, drawn)})

    code = loop.train(run, recipe.num_steps, state, backend, pictures, train_step, show, flag_values)
    if code == 0 and store.latest_step(run.workdir) == recipe.num_steps:
        finish(state, config, pictures, held_out, run, backend, recipe.batch_size)
    return code


def define_flags():
    flags_lib.define(VqganConfig())
    flags_lib.define(vqgan_step.Recipe())
    flags_lib.define(Data())
    flags_lib.define(RUN)
    flags.DEFINE_string("output", None, "Folder for the weights.")
    flags.mark_flags_as_required(["data", "output"])


def main(_):
    config, recipe, data = (flags_lib.from_flags(kind()) for kind in (VqganConfig, vqgan_step.Recipe, Data))
    run = run_flags.train_config(RUN, flags.FLAGS.output)
    values = run_flags.values_of(config, recipe, data) | {"seed": run.seed}
    sys.exit(train(config, recipe, data, run, values))


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
