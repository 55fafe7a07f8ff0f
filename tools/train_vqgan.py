"""`python -m tools.train_vqgan --data=SHARDS --output=DIR`: trains the image tokenizer on pictures of TFRecord shards.

Losses: reconstruction (L2 and a fifth of L1: on plain grounds the sign of L1 is mostly noise) and commitment .25
(VQ-VAE, arXiv:1711.00937), no discriminator. The encoder first learns
without rounding; then codes are drawn from its outputs, far from each other, and follow the running mean (decay .99)
of the outputs that they round. While learning goes on, codes that nothing uses move to badly rounded outputs.

Writes config.json, model.safetensors and reconstructions.png (rows: original, reconstruction), TensorBoard curves and
checkpoints into DIR. A killed run carries on; same flags, same weights.

Shapes: B batch, S picture side, N image tokens, D code width, C codebook, M = B * N outputs of a batch.
"""

import concurrent.futures
import math
import zlib

import numpy as np
import torch
import torch.nn.functional as F
import tqdm
from absl import flags
from PIL import Image

from itit import checkpoint, metrics, storage
from itit import config as config_lib
from itit import flags as flags_lib
from itit.data.blocks import Reader
from itit.data.source import Source
from itit.models.vqgan import VQGAN

L1_WEIGHT = 0.2
COMMITMENT = 0.25
EMA_DECAY = 0.99
PLAIN_SHARE = 0.2  # of the steps before rounding begins
REVIVAL_END = 0.8  # share of the steps after which the codes only settle
REVIVAL_EVERY = 20
DEAD_SHARE = 0.02  # a code below this share of the mean use is dead
LR_WARMUP_STEPS = 20
MAX_BYTES_IN_MEMORY = 2 << 30
LANES = 16  # of the order of pictures that do not fit
LOG_EVERY, CHECKPOINT_EVERY, KEEP_LAST = 20, 200, 2
NUM_PREVIEWS = 8


class Pictures:
    """The pictures of the shards, decoded once into memory where they fit into 2 GiB, otherwise at every use.

    Raises ValueError for an empty set, records without "image", and the first damaged record.
    """

    def __init__(self, pattern, image_size, seed):
        settings = config_lib.replace(config_lib.Config(), image_size=image_size, seed=seed)
        self._pool = concurrent.futures.ThreadPoolExecutor(8)
        reader = Reader(settings.data.read_requests, settings.data.read_ahead_mib << 20)
        self._source = Source("data", pattern, ("picture",), settings, reader, LANES)
        if self._source.broken:
            raise self._source.broken[0]
        if self._source.forms["picture"] != "image":
            raise ValueError(f"--data={pattern}: holds 'image_ids', must hold raw pictures ('image')")
        self._all = None
        count = len(self._source)
        if count * image_size * image_size * 3 <= MAX_BYTES_IN_MEMORY:
            loaded = self._pool.map(self._load, range(count))
            self._all = np.stack(list(tqdm.tqdm(loaded, "reading", count, unit=" pictures", leave=False)))

    def batch(self, step, batch_size):
        """uint8 [B, S, S, 3], a function of (seed, step)."""
        ids = self._source.ids(np.arange(step * batch_size, (step + 1) * batch_size))
        pictures = list(self._pool.map(self._load, ids)) if self._all is None else self._all[ids]
        return torch.from_numpy(np.stack(pictures))

    def _load(self, number):
        return self._source.load(number)["image"]


class CodeAverages:
    """Running means of what each code rounds; they are the codebook of `model` from the first call of `draw` on."""

    def __init__(self, model):
        self._table = model.codebook.weight.requires_grad_(False)
        self.count = torch.zeros(len(self._table), device=self._table.device)  # [C], running mean of uses a step
        self.total = torch.zeros_like(self._table)  # [C, D], running mean of their sum

    def update(self, outputs, ids):
        """Moves the means towards this step's outputs [M, D], rounded to ids [M]."""
        uses = F.one_hot(ids, len(self._table)).to(outputs.dtype)  # [M, C]
        self.count.lerp_(uses.sum(0), 1 - EMA_DECAY)
        self.total.lerp_(uses.T @ outputs, 1 - EMA_DECAY)
        used = self.count > 1e-6
        self._table[used] = self.total[used] / self.count[used, None]

    def draw(self, outputs, rows, generator):
        """Sets codes `rows` to outputs [M, D], each drawn in proportion to its squared distance from all other codes
        (k-means++), so that common outputs do not fill the table with copies of themselves."""
        rest = torch.ones(len(self._table), dtype=torch.bool, device=outputs.device)
        rest[rows] = False
        distance = torch.full((len(outputs),), math.inf, device=outputs.device)
        if rest.any():
            distance = torch.cdist(outputs, self._table[rest]).amin(1).square()
        for row in rows.tolist():
            chances = distance.nan_to_num(posinf=1.0) + 1e-12
            pick = torch.multinomial(chances.cpu(), 1, generator=generator).item()
            self._table[row] = outputs[pick]
            distance = torch.minimum(distance, (outputs - outputs[pick]).square().sum(1))
        # A new code starts with little weight: its first uses place it.
        self.count[rows] = DEAD_SHARE * len(outputs) / len(self._table)
        self.total[rows] = self._table[rows] * self.count[rows, None]

    def dead(self):
        """int64 [up to C], codes used less than DEAD_SHARE of the mean."""
        return (self.count < DEAD_SHARE * self.count.mean()).nonzero()[:, 0]

    def perplexity(self):
        """exp(entropy) of the use of the codes: C if all are used alike, 1 if only one is."""
        share = self.count / self.count.sum().clamp(min=1e-9)
        return torch.exp(-(share * share.clamp(min=1e-9).log()).sum())


class Trainer:
    """Model, optimizer and codebook of one run, and their step."""

    def __init__(self, config, num_steps, learning_rate, seed, device):
        torch.manual_seed(seed)
        self.model = VQGAN(config).to(device)
        self.codes = CodeAverages(self.model)
        self._trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.Adam(self._trained.values(), betas=(0.9, 0.99))
        self._num_steps, self._learning_rate, self._seed = num_steps, learning_rate, seed
        self._start_rounding = int(PLAIN_SHARE * num_steps)

    def step(self, pixels, step):
        """One optimizer step on uint8 [B, S, S, 3]; returns {metric: number or tensor of one element}."""
        images = self.model.from_pixels(pixels)
        features = self.model.encoder(images)  # [B, D, G, G]
        rounding = step >= self._start_rounding
        commitment, codes = features.new_zeros(()), features
        if rounding:
            outputs = features.detach().permute(0, 2, 3, 1).flatten(0, 2)  # [M, D]
            self._place_codes(outputs, step)
            ids, rounded = self.model.quantize(features.detach())
            commitment = F.mse_loss(features, rounded)
            codes = features + (rounded - features).detach()  # the gradient passes straight through
        result = self.model.decoder(codes)
        l2, l1 = F.mse_loss(result, images), F.l1_loss(result, images)
        loss = l2 + L1_WEIGHT * l1 + COMMITMENT * commitment
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        losses = {"loss": loss, "loss/l2": l2, "loss/l1": l1, "loss/commitment": commitment}
        values = {name: value.detach() for name, value in losses.items()} | {"learning_rate": rate}
        if rounding:
            self.codes.update(outputs, ids.flatten())
            values |= {"codes/perplexity": self.codes.perplexity(), "codes/used": len(ids.unique())}
        return values

    def _place_codes(self, outputs, step):
        """The first codes of all, and new places for dead ones."""
        since = step - self._start_rounding
        if since % REVIVAL_EVERY or (since and step > REVIVAL_END * self._num_steps):
            return
        rows = self.codes.dead() if since else torch.arange(len(self.codes.count))
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {step} codes".encode()))
        self.codes.draw(outputs, rows, generator)

    def _rate(self, step):
        warmup = min(1.0, (step + 1) / LR_WARMUP_STEPS)
        return self._learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self._num_steps))

    def state(self):
        """Everything that a resumed run needs: {name: tensor}."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {"codes/count": self.codes.count, "codes/total": self.codes.total}
        for name, parameter in self._trained.items():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"adam/{key}/{name}"] = value
        return tensors

    def load_state(self, tensors):
        """The inverse of `state`."""
        self.model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
        self.codes.count.copy_(tensors["codes/count"])
        self.codes.total.copy_(tensors["codes/total"])
        for name, parameter in self._trained.items():
            keys = {key: tensors[f"adam/{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {k: t.to(t.device if k == "step" else parameter.device)
                                                for k, t in keys.items()}  # fmt: skip


def train(trainer, pictures, batch_size, num_steps, output, flag_values):
    """Trains to `num_steps` from the newest checkpoint in `output` made with the same flags.

    Raises ValueError where that checkpoint was made with other ones.
    """
    device = trainer.codes.count.device
    found, start = checkpoint.restore(output), 0
    if found:
        start, tensors, meta = found
        for name, value in flag_values.items():
            if meta["flags"].get(name) != value:
                raise ValueError(f"--{name}={value}: the run in {output} began with {meta['flags'].get(name)}; "
                                 "name another --output or remove that one")  # fmt: skip
        trainer.load_state(tensors)
        print(f"carrying on from step {start}")
    bar = tqdm.tqdm(range(start, num_steps), "training", num_steps, initial=start, unit=" steps")
    with metrics.Metrics(output, num_steps, start) as board:
        for step in bar:
            values = trainer.step(pictures.batch(step, batch_size).to(device), step)
            done = step + 1
            if done % LOG_EVERY == 0 or done == num_steps:
                values = {key: float(value) for key, value in values.items()}
                if not math.isfinite(values["loss"]):
                    raise ValueError(f"loss is {values['loss']} at step {done}; try a lower --learning_rate")
                board.scalars(done, values)
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {values.get('codes/used', 0):.0f} codes")
            if done % CHECKPOINT_EVERY == 0 or done == num_steps:
                pieces = checkpoint.whole(trainer.state())
                checkpoint.save(output, done, pieces, {"flags": flag_values}, KEEP_LAST)


@torch.no_grad()
def finish(model, pixels, output):
    """Writes the weights and a picture of `pixels` (uint8 [B, S, S, 3]) above their reconstructions."""
    ids = model.tokenize(pixels)
    rows = torch.stack([pixels, model.to_pixels(ids)]).cpu().numpy()  # [2, B, S, S, 3]
    sheet = rows.transpose(0, 2, 1, 3, 4).reshape(2 * rows.shape[2], -1, 3)
    checkpoint.save_weights(output, model.state_dict(), model.config)
    with storage.writer(storage.join(output, "reconstructions.png")) as file:
        Image.fromarray(sheet).save(file, "PNG")
    error = np.square(rows[0].astype(np.float64) - rows[1]).mean()
    psnr = 10 * math.log10(255**2 / max(error, 1e-9))
    print(f"{output}: {model.config.codebook_size} codes, {ids.shape[1]} tokens a picture, PSNR {psnr:.1f} dB")


def define_flags():
    flags_lib.define(config_lib.VqganConfig())
    flags.DEFINE_string("data", None, "TFRecord shards with pictures, comma-separated patterns.", required=True)
    flags.DEFINE_string("output", None, "Folder for the weights.", required=True)
    flags.DEFINE_integer("num_steps", 1000, "Optimizer steps.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 32, "Pictures a step.", lower_bound=1)
    flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate of Adam; cosine to 0.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Seed of weights, order and codes.", lower_bound=0)


def main(_):
    flag = flags.FLAGS
    config = flags_lib.from_flags(config_lib.VqganConfig())
    names = [name for name, _, _ in config_lib.fields(config)]
    names += ["data", "num_steps", "batch_size", "learning_rate", "seed"]
    values = {name: list(flag[name].value) if isinstance(flag[name].value, tuple) else flag[name].value
              for name in names}  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(config, flag.num_steps, flag.learning_rate, flag.seed, device)
    pictures = Pictures(flag.data, config.image_size, flag.seed)
    train(trainer, pictures, flag.batch_size, flag.num_steps, flag.output, values)
    finish(trainer.model, pictures.batch(0, NUM_PREVIEWS).to(device), flag.output)


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
