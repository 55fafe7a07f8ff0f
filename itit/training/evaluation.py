"""Evaluation while a run trains: losses and scores on a fixed set of held-out pairs, and the best checkpoint so far.

Shapes: B batch, N image tokens, L text tokens.
"""

import math

import numpy as np
import torch
from absl import logging

from itit import samples, storage, text_encoders
from itit.checkpoint import store
from itit.config import Config, replace
from itit.console import listed
from itit.data import scenes
from itit.program import program, running
from itit.scores import captions
from itit.scores.scenes import exact
from itit.tasks import TASKS
from itit.train_step import compute_losses, prepare
from itit.training.state import image_ids_of

BEST = "best"
CHUNK = 64  # pairs at once
PASSES = ("t2i", "i2t")  # tasks whose losses are taken
LOSSES = [name for task in PASSES for name in TASKS[task].losses]
# The scores, and whether more is better.
RISING = {"CIDEr": True, "t2i": False, "i2t": False, "captions_exact": True, "pictures_exact": True}


class Evaluation:
    """Scores the first `num_eval` pairs of eval_data (or paired_data), before the first step and every `eval_every`
    steps, by the averaged weights, where there are any.

    On TensorBoard: eval/t2i, eval/i2t and eval/i2t_i2i, the losses of training over all tokens of the set, without
    dropout, with every text and the same masks every time, and, with a vocabulary, eval/CIDEr of greedy captions.
    Records of one picture count as its references. With `eval_scenes` eval/captions_exact and eval/pictures_exact, the
    shares of greedy captions and of pictures, drawn with the same noise every time, that tell exactly the scene (see
    scores/scenes.py). With `keep_best` the checkpoint of the best score lies in workdir/best, itself a workdir.

    Nothing here belongs to the training step: what that compiled and drew stays as it was.
    """

    def __init__(self, config: Config, state, backend, streams, meta):
        self._config, self._state, self._backend, self._meta = config, state, backend, meta
        self._every, self._last = config.train.eval_every, config.optim.num_steps
        self._best, self._undropped = -math.inf, replace(config, t2i_text_drop_prob=0.0)
        if not self._every:
            return
        self._batch = self._to_ids(streams.sample_batch(min(config.train.num_eval, streams.num_eval or 1)))
        self._detokenizer = text_encoders.tokenizer(config)
        if self._detokenizer:
            self._collect()
        if config.train.eval_scenes:
            self._check_scenes()
        self._folder = storage.join(config.train.workdir, BEST)
        if config.train.keep_best:
            found = store.restore(self._folder, lambda *_: None, backend.hosts)
            self._best = found[2]["best"] if found else -math.inf

    def due(self, step):
        """Whether to `run` after this many steps."""
        return bool(self._every) and (step % self._every == 0 or step == self._last)

    def run(self, step, metrics):
        """Scores, writes to TensorBoard and, where asked, saves. All hosts call it. Returns {name: float}."""
        with self._state.averaged():
            found = self._losses()
            if self._detokenizer:
                found["CIDEr"] = self._cider()
            if self._config.train.eval_scenes:
                found |= self._exact()
        metrics.scalars(step, {f"eval/{name}": value for name, value in found.items()})
        logging.info("step %d, evaluation:\n%s", step, listed(f"{name} {value:.4f}" for name, value in found.items()))
        name = self._config.train.keep_best
        if name:
            self._keep(step, found[name] if RISING[name] else -found[name])
        return found

    def _to_ids(self, batch):
        """The pairs as ids on the host: NumPy "image_ids" [B, N] and "text_ids" [B, L]."""
        if "image_ids" in batch:
            return batch
        found = self._backend.spread(self._ids_of, _chunks(batch["images"]))
        return {"image_ids": np.concatenate([ids.cpu().numpy() for ids in found]), "text_ids": batch["text_ids"]}

    def _ids_of(self, images):
        batch = self._backend.to_device({"images": images}, whole=True)
        return self._backend.sampler(image_ids_of, batch, self._state)

    def _losses(self):
        self._state.model.eval()
        chunks = enumerate(zip(*map(_chunks, self._batch.values()), strict=True))
        found = self._backend.spread(self._sums, chunks)
        values, totals = (sum(part.cpu().double() for part in parts) for parts in zip(*found, strict=True))
        self._state.model.train()
        found = dict(zip(LOSSES, (values / totals).tolist(), strict=True))
        return {name: value for name, value in found.items() if getattr(self._config.objective, f"{name}_weight")}

    def _sums(self, chunk):
        """Of each loss of some pairs the sum, and what it is a mean of: float32 [losses] twice."""
        number, rows = chunk
        active = dict.fromkeys(PASSES, len(rows[0]))
        batch = {f"{task}/{name}": part for task in active for name, part in zip(self._batch, rows, strict=True)}
        noise = self._backend.noise(self._config.train.seed, 0, f"eval/{number}", whole=True)
        batch = self._backend.to_device(batch, whole=True)
        with running(self._backend.sampler):
            part = prepare(self._state, batch, noise, noise, self._config, active, (0, 1))
            return _losses(self._state, part, noise, self._undropped)

    def _check_scenes(self):
        for text in self._detokenizer.decode(self._batch["text_ids"]):
            if scenes.parse(text) is None:
                raise ValueError(f"--eval_scenes: the eval data hold {text!r}, which is no caption of Scenes")

    def _collect(self):
        """Pictures that differ, and what is said of each."""
        texts, groups = self._detokenizer.decode(self._batch["text_ids"]), {}
        for row, text in zip(self._batch["image_ids"], texts, strict=True):
            groups.setdefault(row.tobytes(), (row, []))[1].append(text)
        self._references = [texts for _, texts in groups.values()]
        rows = np.stack([row for row, _ in groups.values()])
        self._pictures = self._backend.to_device({"image_ids": rows}, whole=True)["image_ids"]

    def _cider(self):
        translator = samples.Translator(self._state, self._config, self._backend, 0)
        ids = translator.captions(self._pictures, greedy=True)
        return captions.quick(self._detokenizer.decode(ids.cpu().numpy()), self._references)

    def _exact(self):
        translator = samples.Translator(self._state, self._config, self._backend, 0)
        batch = self._backend.to_device(self._batch, whole=True)
        told = translator.captions(batch["image_ids"], greedy=True)
        drawn = translator.pixels(translator.pictures(batch["text_ids"], "eval"))
        truth = [scenes.parse(text) for text in self._detokenizer.decode(self._batch["text_ids"])]
        captions_found = [scenes.parse(text) for text in self._detokenizer.decode(told.cpu().numpy())]
        pictures_found = [scenes.read(picture) for picture in drawn]
        return {"captions_exact": exact(captions_found, truth), "pictures_exact": exact(pictures_found, truth)}

    def _keep(self, step, score):
        if score <= self._best:
            return
        self._best = score
        pieces = self._backend.owned(self._state.tensors())
        store.save(self._folder, step, pieces, self._meta | {"best": score}, 1, self._backend.hosts)


def _chunks(rows):
    return [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]


@program
@torch.no_grad()
def _losses(state, part, noise, config):
    losses = compute_losses(state, part, part.totals, noise, config)
    totals = torch.stack([part.totals[name] for name in LOSSES])
    return torch.stack([losses[name] for name in LOSSES]) * totals, totals
