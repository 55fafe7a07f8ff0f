"""`python -m tools.reconstruct --vqgan=DIR --input=PICTURES --output=DIR`: pictures through a tokenizer and back.

PICTURES is a folder (with all that is below it), or patterns of picture files or of TFRecord shards. Each picture is
resized and cropped as in training. Written: reconstructions.png, pairs of original (left) and reconstruction, and
report.json: PSNR, SSIM, how much of the codebook is used, and both numbers of every picture.

Shapes: B pictures of a batch, S side, N image tokens, C codebook.
"""

import json

import numpy as np
import torch
import tqdm
from absl import flags

from itit import sheets, storage
from itit.checkpoint.weights import load_vqgan
from itit.flags import run_main
from tools.generation import inputs
from tools.scoring import likeness

COLUMNS = 8  # of the sheet


def choose(found, count):
    """At most `count` of the pictures, evenly spread."""
    count = min(count, len(found))
    return [found[i * len(found) // count] for i in range(count)]


class Scores:
    """What is learned of a tokenizer, picture by picture."""

    def __init__(self, codebook_size):
        self.pictures = []
        self.uses = torch.zeros(codebook_size, dtype=torch.int64)  # [C]

    def add(self, names, pixels, result, ids):
        """A batch: names, uint8 [B, S, S, 3] twice, and int64 [B, N]."""
        for name, *values in zip(names, likeness.psnr(pixels, result), likeness.ssim(pixels, result), strict=True):
            self.pictures.append({"name": name} | dict(zip(("psnr", "ssim"), map(float, values), strict=True)))
        self.uses += torch.bincount(ids.flatten().cpu(), minlength=len(self.uses))

    def report(self):
        """Means over pictures; codes by how often they are used. `perplexity`: exp(entropy) of that."""
        share = self.uses[self.uses > 0] / self.uses.sum()
        used = int((self.uses > 0).sum())
        return {
            "num_pictures": len(self.pictures), "psnr_db": float(np.mean([p["psnr"] for p in self.pictures])),
            "ssim": float(np.mean([p["ssim"] for p in self.pictures])), "codebook_size": len(self.uses),
            "codes_used": used, "code_usage": used / len(self.uses),
            "perplexity": float(torch.exp(-(share * share.log()).sum())), "num_tokens": int(self.uses.sum()),
        }  # fmt: skip


@torch.no_grad()
def run(model, found, batch_size, num_shown):
    """Returns (Scores, `num_shown` pairs, evenly spread: list of (uint8 [S, S, 3], uint8 [S, S, 3], its scores))."""
    device, side = model.codebook.weight.device, model.config.image_size
    scores, shown = Scores(model.config.codebook_size), []
    wanted = set(choose(range(len(found)), num_shown))
    with tqdm.tqdm(total=len(found), desc="reconstructing", unit=" pictures") as bar:
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            pixels = torch.from_numpy(np.stack([inputs.load(picture, side) for picture in batch]))
            ids = model.tokenize(pixels.to(device))
            result = model.to_pixels(ids).cpu()
            scores.add([picture.name for picture in batch], pixels, result, ids)
            for n in range(len(batch)):
                if start + n in wanted:
                    shown.append((pixels[n].numpy(), result[n].numpy(), scores.pictures[start + n]))
            bar.update(len(batch))
    return scores, shown


def pairs(shown):
    """A section of originals, each with its reconstruction on the right."""
    panels = []
    for pixels, result, scores in shown:
        told = f"{scores['psnr']:.1f} dB, SSIM {scores['ssim']:.2f}"
        panels += [sheets.Panel(pixels, scores["name"]), sheets.Panel(result, told)]
    return sheets.Section("pictures, and beside each what its codes give", sheets.in_rows(panels, COLUMNS))


def define_flags():
    flags.DEFINE_string("vqgan", None, "Folder of the image tokenizer.", required=True)
    flags.DEFINE_string("input", None, "Folder, or comma-separated patterns of pictures or TFRecords.", required=True)
    flags.DEFINE_string("output", None, "Folder for reconstructions.png and report.json.", required=True)
    flags.DEFINE_integer("num_pictures", 1000, "At most this many of the pictures, evenly spread.", lower_bound=1)
    flags.DEFINE_integer("num_shown", 24, "Pairs on the sheet, evenly spread.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 8, "Pictures at once.", lower_bound=1)


def main(_):
    flag = flags.FLAGS
    model = load_vqgan(flag.vqgan).to("cuda" if torch.cuda.is_available() else "cpu")
    found = choose(inputs.find(flag.input), flag.num_pictures)
    scores, shown = run(model, found, flag.batch_size, flag.num_shown)
    report = {"vqgan": flag.vqgan, "input": flag.input, **scores.report()}
    storage.make_dirs(flag.output)
    side = max(sheets.SIDE, model.config.image_size)
    sheets.write(storage.join(flag.output, "reconstructions.png"), [pairs(shown)], side)
    data = json.dumps(report | {"pictures": scores.pictures}, indent=1).encode()
    storage.write_bytes(storage.join(flag.output, "report.json"), data)
    print(f"{flag.output}: {report['num_pictures']} pictures, PSNR {report['psnr_db']:.2f} dB, SSIM "
          f"{report['ssim']:.3f}, {report['codes_used']} of {report['codebook_size']} codes used "
          f"({report['code_usage']:.1%}), perplexity {report['perplexity']:.0f}")  # fmt: skip


if __name__ == "__main__":
    define_flags()
    run_main(main)
