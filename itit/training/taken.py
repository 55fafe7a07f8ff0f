"""Values that follow from files are taken from them: sizes of the image tokenizer, of the text encoder with its
vocabulary, and of ready ids. A value that is given, too, must be the same."""

import dataclasses

from absl import logging

from itit import storage, text_encoders
from itit.checkpoint import weightsdir
from itit.config import T5Config, VqganConfig, from_json, replace, values_of
from itit.data import source
from itit.tasks import STREAMS, batches, of_stream

TAKEN = ("image_size", "num_image_tokens", "codebook_size", "num_text_tokens", "vocab_size", "bos_id")
ROWS = 64  # the rows of a vocabulary are a multiple of this, which products of matrices are fast with


class _Values:
    """The values of TAKEN so far. `given`: flag -> (value, the flagfile that it stands in or "")."""

    def __init__(self, given):
        self._found = given

    def __contains__(self, name):
        return name in self._found

    def add(self, place, **values):
        """What a file says. Raises ValueError, one line with both values and places, where another one is known."""
        taken = {name: value for name, value in values.items() if name not in self._found}
        for name, value in values.items():
            if self._found.setdefault(name, (value, place))[0] != value:
                raise ValueError(f"{self.told(name)}: {place} has {value}; what is not given is taken from there")
        if taken:
            logging.info("taken from %s: %s", place, " ".join(f"--{name}={value}" for name, value in taken.items()))

    def told(self, name):
        """A value and its place, for a message."""
        value, place = self._found[name]
        return f"--{name}={value}" + (f" in {place}" if place else "")

    def into(self, config):
        return replace(config, **{name: value for name, (value, _) in self._found.items()})


def settle(config, places=None, before=None, need=True):
    """The resolved Config, with what its files say.

    Args:
      places: flag -> the flagfile that it stands in (see `flagfiles.places`).
      before: place -> {flag: value}: what goes before all files, that of the run that goes on.
      need: whether files must be there. Without, what is not, or lies on gs://, is passed over: for those who want
        sizes alone.

    Raises ValueError, one line, where a file is absent, or a value is not what a file says.
    """
    places = places or {}
    values = _Values({name: (value, places.get(name, "")) for name, value in values_of(config).items()
                      if name in TAKEN and value is not None})  # fmt: skip
    for place, found in (before or {}).items():
        values.add(place, **found)
    config = _add_weights(config, values, need)
    for form, name in source.LENGTHS.items():
        if name not in values:
            _add_length(config, values, form, name, need)
    pieces = _pieces(config, need)
    if pieces and "vocab_size" not in values:
        values.add(config.data.vocabulary, vocab_size=-(-(pieces + 1) // ROWS) * ROWS)
    config = values.into(config).resolve()
    for name, least in (("vocab_size", pieces + 1), ("bos_id", pieces)):
        if getattr(config.model, name) < least:
            raise ValueError(f"{values.told(name)}: must be at least {least}, for the {pieces} pieces of "
                             f"{config.data.vocabulary}")  # fmt: skip
    return config


def _there(path, need):
    return need or not storage.is_remote(path) and storage.exists(path)


def _section(cls, flag, folder):
    """(The config.json in a folder of weights, its path)."""
    path = storage.join(folder, weightsdir.CONFIG)
    if not storage.exists(path):
        raise ValueError(f"--{flag}={folder}: no {weightsdir.CONFIG} in it")
    return from_json(cls, storage.read_small(path), path), path


def _add_weights(config, values, need):
    """Adds what the frozen networks say. Returns the Config with the sizes of the text encoder."""
    if config.data.vqgan and _there(config.data.vqgan, need):
        vqgan, path = _section(VqganConfig, "vqgan", config.data.vqgan)
        values.add(path, image_size=vqgan.image_size, num_image_tokens=vqgan.grid**2, codebook_size=vqgan.codebook_size)
    if config.t5.weights and _there(config.t5.weights, need):
        t5, path = _section(T5Config, "t5_weights", config.t5.weights)
        if t5.vocab_size is not None:
            values.add(path, vocab_size=t5.vocab_size)
        t5 = dataclasses.replace(t5, weights=config.t5.weights, seed=config.t5.seed)
        return dataclasses.replace(config, t5=t5, model=dataclasses.replace(config.model, text_feature_dim=t5.dim))
    return config


def _add_length(config, values, form, name, need):
    """Adds how many ids of a form the records of the run have. Data that cannot be read are for `Streams` to refuse."""
    sizes = batches(config.objective)
    streams = [stream for stream in STREAMS if any(sizes[task] for task in of_stream(stream))]
    for stream in (*streams, "eval_data"):
        pattern = getattr(config.data, stream)
        if not pattern or not need and storage.is_remote(pattern):
            continue
        try:
            found = source.length_of(form, pattern)
        except (ValueError, OSError):
            continue
        if found:
            return values.add(f"the {form} of --{stream} ({found[1]})", **{name: found[0]})


def _pieces(config, need):
    """How many pieces the vocabulary has; 0 without one."""
    path = config.data.vocabulary
    if not path or not _there(path, need):
        return 0
    try:
        return text_encoders.tokenizer(config).num_pieces
    except OSError as error:
        raise ValueError(f"--vocabulary={path}: {error.strerror or error}") from None
