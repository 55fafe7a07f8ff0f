"""A trained ITIT to use: `ITIT.from_pretrained(path).generate(prompts)`, and `.caption(images)`. Plain torch.

    from itit import ITIT

    model = ITIT.from_pretrained("scenes")
    pictures = model.generate(["a small red circle in the top left"], seed=0)
    texts = model.caption(pictures)

"scenes" is shipped; any other `tools.export` writes. `ITIT.from_run` loads the folder of a run. The networks alone:
`itit.models.load(path)`.

Shapes: B batch, N image tokens, L text tokens, S side of a picture in pixels.
"""

import dataclasses
import math
import os

import numpy as np
import tqdm
from PIL import Image

from itit import storage, text_encoders
from itit.backends import local
from itit.checkpoint import weights, weightsdir
from itit.config import Config, DataConfig, replace
from itit.data import images as images_lib
from itit.data import text as text_lib
from itit.models import encode_text
from itit.models.layers import set_compute_dtype
from itit.objectives import empty_ids
from itit.samples import Translator
from itit.train_step import State
from itit.training import runs
from itit.training.state import DTYPES, check_frozen, fingerprint, image_ids_of, text_encoder, vocabulary_of
from itit.untrusted import shown

BATCH_SIZE = 16


class ITIT:
    """Texts to pictures and pictures to texts. `record`: which weights these are, a dict."""

    def __init__(self, state, tokenizer, config, record, backend):
        self.state, self.tokenizer, self.config, self.record, self.backend = state, tokenizer, config, record, backend

    @property
    def fingerprint(self):
        """Checksum of ITIT's own weights."""
        return self.state.model.fingerprint

    @property
    def picture_size(self):
        """S."""
        return self._need("vqgan").config.image_size

    @classmethod
    def from_pretrained(
        cls, path, device=None, dtype=None, t5=None, vqgan=None, vocabulary=None, backend=None, revision=None
    ):  # fmt: skip
        """Loads a model with its text encoder, image tokenizer and vocabulary.

        Args:
          path: the folder that tools.export wrote, or the safetensors file in it; "scenes", which is shipped; or
            OWNER/NAME on the Hugging Face Hub where there is no such folder. What is fetched is said on stderr before.
          device: torch device; by default the GPU, if there is one, else the processor.
          dtype: type of matrix products, "bf16" or "fp32"; by default that of training.
          t5, vqgan, vocabulary: where these are, if not in the folder.
          backend: in the place of `device`: of `itit.backends.connect`.
          revision: branch, tag or commit on the Hub.

        Raises ValueError, one line, where a file is absent, damaged, or not the one that the model was trained with.
        """
        path = _fetched(path, revision)
        file, _ = weights.exported_file(path)
        record = weights.read_record(file)
        config = Config(**weights.sections_of(record, file))
        _check_dtype(dtype or record.get("compute_dtype"))
        given = {"t5": t5, "vqgan": vqgan, "vocabulary": vocabulary}
        parts = {name: _locate(name, given[name], record["parts"][name], file) for name in given}
        if not parts["t5"]:
            raise ValueError(f"{file}: was exported without text encoder: give from_pretrained one, t5=PATH")
        networks = (
            weights.load_itit(path), weights.load_text_encoder(*parts["t5"]),
            weights.load_vqgan(*parts["vqgan"]) if parts["vqgan"] else None,
        )  # fmt: skip
        tokenizer = _read_vocabulary(config, *parts["vocabulary"]) if parts["vocabulary"] else None
        dtype, backend = dtype or record["compute_dtype"], backend or local.on(device)
        record |= {"compute_dtype": dtype}
        return cls(_make_state(networks, config, dtype, backend), tokenizer, config, record, backend)

    @classmethod
    def from_run(
        cls, workdir, device=None, dtype=None, t5=None, vqgan=None, vocabulary=None, backend=None, step=None,
        averaged=None,
    ):  # fmt: skip
        """Loads a model out of a run's folder, without an export.

        Args:
          workdir: of the run, see `from_pretrained` for what is not said here.
          step: of the checkpoint; by default that of the newest whole one.
          averaged: averaged weights or raw ones; by default averaged ones where the run has them.

        Raises ValueError as `from_pretrained`, and where there is no such checkpoint.
        """
        _check_dtype(dtype)
        config = runs.settings(workdir, moved={"t5_weights": t5, "vqgan": vqgan, "vocabulary": vocabulary})
        step, tensors, meta = runs.restore(workdir, step)
        place = f"{workdir}, checkpoint of step {step}"
        tensors, averaged = runs.choose(tensors, averaged, place)
        vqgan = weights.load_vqgan(config.data.vqgan) if config.data.vqgan else None
        networks = runs.build(config, tensors, place), text_encoder(config), vqgan
        parts = {"t5_weights": networks[1]} | ({"vqgan": vqgan} if vqgan else {})
        check_frozen({n: fingerprint(part) for n, part in parts.items()} | vocabulary_of(config), meta, place)
        tokenizer = text_encoders.tokenizer(config)
        dtype, backend = dtype or config.train.compute_dtype, backend or local.on(device)
        record = {"step": step, "averaged": averaged, "compute_dtype": dtype}
        return cls(_make_state(networks, config, dtype, backend), tokenizer, config, record, backend)

    def generate(
        self, prompts, seed=0, *, batch_size=BATCH_SIZE, progress=True, numbers=None, watch=None, **decode
    ):  # fmt: skip
        """One picture a prompt. A picture's noise is drawn from the seed and its number alone: on one device the same
        prompt, seed and number give the same picture, but for how products of another batch size are rounded.

        Args:
          prompts: list of str; a text alone is a list of one. What exceeds L tokens is cut.
          progress: show a bar.
          numbers: of the pictures, ints; by default 0, 1, ...
          watch: called after each step with the pictures of a batch, uint8 [B, S, S, 3], grey where nothing is yet.
          decode: settings of config.DecodeConfig, by name, such as num_decode_steps; None is as trained with.

        Returns:
          list of PIL images, S x S.
        """
        prompts = _texts(prompts)
        numbers = _numbers(numbers, len(prompts))
        config = self._configured(seed, decode)
        text_ids = self._encode(prompts)
        self._need("vqgan")

        def draw(translator, ids, rows):
            see = watch and (lambda image_ids: watch(translator.pixels(image_ids)))
            return translator.pixels(translator.pictures(ids, rows=numbers[rows], watch=see))

        made = self._in_batches(draw, text_ids, config, batch_size, "generating" if progress else None)
        return [Image.fromarray(pixels) for pixels in made]

    def caption(self, images, *, batch_size=BATCH_SIZE, progress=True, candidates=False, **decode):
        """One text a picture, by beam search, which draws nothing at random.

        Args:
          images: list of PIL images or of paths, of any size: the centre square is used. One alone is a list of one.
          candidates: give all that the beams found.
          decode: as in `generate`, such as beam_size.

        Returns:
          list of str; with `candidates` list of lists of (text, score), best first (see `decoding.Candidates`).
        """
        config = self._configured(0, decode)
        pixels, _ = self._pixels(images), self._need("vocabulary")

        def tell(translator, pixels, _):
            return self._ranked(translator.candidates(self._tokenize(pixels)))

        told = self._in_batches(tell, pixels, config, batch_size, "captioning" if progress else None)
        return told if candidates else [ranked[0][0] for ranked in told]

    def cycle(self, start, num_turns, seed=0, numbers=None, watch=None, **decode):
        """Text -> picture -> text ... (paper figures 6, 10). Pictures go on as codes, as in training.

        Args:
          start: list of B str, which are texts, or of PIL images or path objects. One alone is a list of one.
          num_turns: how often one is made from the other.
          numbers: as in `generate`.
          watch: called with each stage as soon as it is there.
          decode: as in `generate`.

        Returns:
          list of 1 + num_turns stages, the first as the model sees it: lists of B str, or of B PIL images.
        """
        if num_turns < 1:
            raise ValueError(f"num_turns={num_turns}: must be at least 1")
        start = [start] if isinstance(start, (str, os.PathLike, Image.Image)) else list(start)
        from_text = all(isinstance(x, str) for x in start)
        for text in start if from_text else ():
            if text.lower().endswith(images_lib.SUFFIXES) and os.path.exists(text):
                raise ValueError(f"start={text!r}: a text, and the name of a picture: give pathlib.Path({text!r})")
        config = self._configured(seed, decode)
        self._need("vqgan"), self._need("vocabulary")
        given = self._place(self._encode(_texts(start)) if from_text else self._pixels(start))
        ids = given if from_text else self._tokenize(given)
        translator, stages = Translator(self.state, config, self.backend, 0, len(given)), []
        turns = translator.turns(ids, "text" if from_text else "image", num_turns, _numbers(numbers, len(given)))
        for turn, ids in enumerate(turns):
            if from_text == (turn % 2 == 0):
                stages.append(self.tokenizer.decode(ids.cpu().numpy()))
            else:
                stages.append([Image.fromarray(pixels) for pixels in translator.pixels(ids)])
            if watch is not None:
                watch(stages[-1])
        return stages

    def _configured(self, seed, decode):
        changed = replace(self.config.decode, **{name: value for name, value in decode.items() if value is not None})
        return replace(dataclasses.replace(self.config, decode=changed), seed=seed).resolve()

    def _encode(self, prompts):
        return self._need("vocabulary").encode(prompts, self.config.model.num_text_tokens)

    def _pixels(self, images):
        return np.stack(_squares(images, self.picture_size))

    def _place(self, rows):
        return self.backend.to_device({"rows": rows}, whole=True)["rows"]

    def _tokenize(self, pixels):
        return self.backend.sampler(image_ids_of, {"images": pixels}, self.state)

    def _ranked(self, candidates):
        """Of each row [(text, score)], best first."""
        scores = candidates.scores.cpu().tolist()
        texts = self._need("vocabulary").decode(candidates.texts.cpu().numpy())
        return [[(text, score) for text, score in zip(*row, strict=True) if math.isfinite(score)]
                for row in zip(texts, scores, strict=True)]  # fmt: skip

    def _in_batches(self, function, rows, config, batch_size, title):
        """The concatenated results of function(translator, rows of a batch on the device, slice of them)."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        translator, results = Translator(self.state, config, self.backend, 0, batch_size), []
        with tqdm.tqdm(total=len(rows), desc=title, disable=title is None, leave=False) as bar:
            for start in range(0, len(rows), batch_size):
                part = slice(start, start + batch_size)
                results += list(function(translator, self._place(rows[part]), part))
                bar.update(len(rows[part]))
        return results

    def _need(self, name):
        part = {"vqgan": self.state.vqgan, "vocabulary": self.tokenizer}[name]
        if part is None:
            given = f"--{name}=PATH, or in Python {name}=PATH, where it is loaded"
            raise ValueError(f"this model was made without {name}: give it one, {given}")
        return part


def _make_state(networks, config, dtype, backend):
    """A State that generates: (ITIT, T5, VQGAN or None) on the devices."""
    model, t5, vqgan = networks
    model.fingerprint = fingerprint(model)  # on the host: nothing is gathered from devices
    set_compute_dtype(model, DTYPES[dtype])
    model, t5, vqgan = backend.adopt(model), backend.adopt(t5.to(DTYPES[dtype])), vqgan and backend.adopt(vqgan)
    nothing = encode_text(t5, empty_ids(config.model.num_text_tokens, backend.device))
    state = State(model, t5, vqgan, nothing, None, None)
    backend.place_state(state)
    return state


def _check_dtype(dtype):
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype={dtype!r}: choose one of {', '.join(DTYPES)}")


def _fetched(path, revision):
    """The folder of a name on the Hub; any other path as it is."""
    if not weights.ON_HUB.fullmatch(path) or storage.exists(path):
        return path
    try:
        # Not everybody has its library, and local folders need none of it.
        from itit.checkpoint import hub
    except ValueError as error:
        raise ValueError(f"{path}: no such folder; for a name on the Hub, {error}") from None
    return hub.fetch(path, revision)


def _locate(name, given, recorded, file):
    """(path, SHA-256) of a part, or None where it was exported without and none is given."""
    if not recorded:
        return (given, None) if given else None
    path, there = given, recorded["path"]
    if not path:
        # A file from elsewhere does not say what of this machine, or of the network, is opened.
        if "://" in there or os.path.isabs(there) or ".." in there.split("/"):
            raise ValueError(f"{file}: its {name} lies outside of its folder, at {shown(there)}: if you trust that, "
                             f"give it to from_pretrained, {name}=PATH")  # fmt: skip
        path = storage.join(os.path.dirname(file), there)
    if not storage.exists(path):
        raise ValueError(f"{shown(path)}: not there; give from_pretrained the place of its {name}, {name}=PATH")
    return path, recorded["sha256"]


def _read_vocabulary(config, path, sha256):
    tokenizer = text_encoders.tokenizer(config, path)
    weightsdir.check_hash(path, sha256, storage.sha256(path))
    return tokenizer


def _numbers(numbers, count):
    numbers = list(range(count) if numbers is None else numbers)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers for {count} samples: give one each")
    return numbers


def _texts(prompts):
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is a {type(prompt).__name__}: must be a text")
        text_lib.check(prompt, f"prompt {i}")
    if not prompts:
        raise ValueError("no prompts: give at least one text")
    return prompts


def _squares(images, size):
    """list of uint8 [S, S, 3]. Raises ValueError naming the picture that is none."""
    images = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else list(images)
    if not images:
        raise ValueError("no images: give at least one")
    return [_square(i, image, size) for i, image in enumerate(images)]


def _square(i, image, size):
    try:
        if isinstance(image, Image.Image):
            return images_lib.to_square(image, size)
        if isinstance(image, (str, os.PathLike)):
            with storage.open(os.fspath(image)) as file:
                return images_lib.decode(file.read(), size, DataConfig().max_image_pixels)
    except OSError as error:
        raise ValueError(f"image {i}: {image}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"image {i}: {error}") from None
    raise ValueError(f"image {i} is a {type(image).__name__}: must be a PIL image or a path")
