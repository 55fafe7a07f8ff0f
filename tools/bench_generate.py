"""`python -m tools.bench_generate [--preset=B]`: captions/s and pictures/s, in one table beside comparable models.

Random weights, in float32 or, with --compute_dtype=bf16, the peers under torch's autocast. All take turns, round by
round, after two rounds to warm up; the median of the rounds counts. Texts never end, so that all make as many tokens.
Text features are there already. The peers (`tools/timing/peers.py`) need the extra `bench`.
"""

import functools
import statistics
import time

import torch
import tqdm
from absl import flags

from itit import config as config_lib
from itit import inference
from itit.backends.connect import connect
from itit.decoding import EOS, best
from itit.flags import run_main
from itit.models import VQGAN, ITITModel, Text
from itit.models.layers import set_compute_dtype
from itit.training.state import DTYPES
from tools.timing import peers

WARM_UP = 2  # the first loads what is needed; on a GPU the second records graphs


def itit(preset, compute_dtype="fp32"):
    """(Config, ITIT, tokenizer) of the paper's sizes with T5 features as wide as those of the peers."""
    config = config_lib.replace(config_lib.Config(), preset=preset, t5_size=peers.T5_SIZE).resolve()
    model, vqgan = ITITModel(config.model).eval(), VQGAN(config_lib.VqganConfig()).eval()
    set_compute_dtype(model, DTYPES[compute_dtype])
    with torch.no_grad():
        model.text_decoder.head.bias[EOS] = -1e4
    return config, model, vqgan


def features(batch, config):
    """Text of random features, float32 [B, L, D]."""
    mask = torch.ones(batch, config.model.num_text_tokens, dtype=torch.bool)
    return Text(torch.randn(*mask.shape, config.model.text_feature_dim), mask)


def caption_runs(config, model, vqgan, batch, backend):
    """Name -> (call, modules whose parameters it uses)."""
    ids = torch.randint(config.model.codebook_size, (batch, config.model.num_image_tokens))
    pixels = torch.randint(256, (batch, 256, 256, 3), dtype=torch.uint8)
    empty, name = features(1, config), f"ITIT-{config.model.preset}"
    towers = [model.encoder, model.text_decoder]

    def caption(ids):
        return best(backend.whole(inference.caption_beam, model, ids, empty, config.decode))

    @torch.no_grad()
    def from_pixels():
        return caption(vqgan.tokenize(pixels))

    return {f"{name}, from codes": (lambda: caption(ids), towers),
            f"{name}, from pixels": (from_pixels, [*towers, vqgan])}  # fmt: skip


def generate(model, text, empty, noise, config, dropped):
    return inference.generate(model, text, empty, noise, config, dropped=dropped)


def picture_runs(config, model, vqgan, batch, backend):
    """The same for pictures."""
    text, empty, name = features(batch, config), features(1, config), f"ITIT-{config.model.preset}"
    noise = backend.noise(0, 0, rows=list(range(batch)))
    towers = [model.encoder, model.image_decoder]
    dropping = config_lib.replace(config, synth_drop_masked=True)
    ids = torch.randint(config.model.codebook_size, (batch, config.model.num_image_tokens))

    def draw(config=config):
        dropped = inference.drops(model, config.objective, config.decode)
        return backend.whole(generate, model, text, empty, noise, config.decode, dropped)

    @torch.no_grad()
    def to_pixels():
        return vqgan.to_pixels(ids)

    return {f"{name}, to codes": (draw, towers), f"{name}, to codes, dropping": (lambda: draw(dropping), towers),
            "tokenizer (MaskGIT's), codes to pixels": (to_pixels, [vqgan])}  # fmt: skip


def autocast(call, device_type, compute_dtype):
    """The call with its products of matrices in this type, as users of the peers have it."""

    def run():
        with torch.autocast(device_type, torch.bfloat16, enabled=compute_dtype == "bf16"):
            return call()

    return run


def measure(runs, num_rounds):
    """Name -> median seconds of a call. All take turns."""
    seconds = {name: [] for name in runs}
    with tqdm.tqdm(total=len(runs) * (num_rounds + WARM_UP), leave=False) as bar:
        for _ in range(num_rounds + WARM_UP):
            for name, (call, _) in runs.items():
                bar.set_description(name)
                start = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - start)
                bar.update()
    return {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}


def table(unit, runs, seconds, batch):
    """Lines of a Markdown table. `unit`: "captions" or "pictures". What the first run takes is 1."""
    first = next(iter(seconds.values()))
    lines = [f"| | parameters | {unit}/s | time, of the first |", "|---|---|---|---|"]
    for name, (_, modules) in runs.items():
        count = sum(p.numel() for p in {p for module in modules for p in module.parameters()})
        rate, ratio = batch / seconds[name], seconds[name] / first
        lines.append(f"| {name} | {count / 1e6:.0f} M | {rate:.4g} | {ratio:.2f} |")
    return lines


def define_flags():
    flags.DEFINE_enum("backend", "cpu", ("cpu", "cuda"), "Where.")
    flags.DEFINE_enum("compute_dtype", "fp32", tuple(DTYPES), "Type of products of matrices.")
    flags.DEFINE_enum("preset", "B", tuple(peers.SIZES), "Size of ITIT and of the peers.")
    flags.DEFINE_integer("batch", 1, "Samples at once.", lower_bound=1)
    flags.DEFINE_integer("rounds", 1, "Rounds timed, after those to warm up.", lower_bound=1)


def main(_):
    flag = flags.FLAGS
    backend = connect(config_lib.TrainConfig(backend=flag.backend))
    torch.set_default_device(backend.device)  # the peers know no other way
    config, *networks = itit(flag.preset, flag.compute_dtype)
    d, length = config.decode, config.model.num_text_tokens
    where = torch.cuda.get_device_name() if flag.backend == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"PyTorch {torch.__version__}, {where}, {flag.compute_dtype}, {flag.batch} at once, --rounds={flag.rounds}\n")
    captions = caption_runs(config, *networks, flag.batch, backend)
    call, model = peers.git(flag.preset, flag.batch, length, d.beam_size)
    call = autocast(call, flag.backend, flag.compute_dtype)
    captions |= {"GIT (transformers), from pixels": (call, [model])}
    print(f"Captions of {length} tokens, {d.beam_size} beams:\n")
    print("\n".join(table("captions", captions, measure(captions, flag.rounds), flag.batch)), flush=True)
    pictures = picture_runs(config, *networks, flag.batch, backend)
    # Guidance of scale s here is 1 + s there.
    asked = flag.preset, flag.batch, d.num_decode_steps, 1 + d.guidance_scale
    muse = functools.partial(peers.muse, flash=flag.compute_dtype == "fp32")
    for name, peer in (("aMUSEd (diffusers), to codes", peers.amused), ("muse-maskgit-pytorch, to codes", muse)):
        call, model = peer(*asked)
        pictures[name] = autocast(call, flag.backend, flag.compute_dtype), [model]
    print(f"\nPictures of {config.model.num_image_tokens} tokens, {d.num_decode_steps} steps with guidance:\n")
    print("\n".join(table("pictures", pictures, measure(pictures, flag.rounds), flag.batch)), flush=True)


if __name__ == "__main__":
    define_flags()
    run_main(main)
