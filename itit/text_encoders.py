"""The frozen text encoders, once: one row for each family, and the ids that every vocabulary has.

A family is --t5_family, kept in the config.json beside weights. Rows name classes by their places, "module:Class",
which are imported where they are used: no torch for the data, no TensorFlow for the networks. Standard library only.

Shapes: B batch, L text tokens, F width, V vocabulary.
"""

import importlib
from typing import NamedTuple, Protocol

# Ids of ITIT's texts, whatever the encoder. A family that has others renumbers its table and its tokenizer.
PAD, EOS, UNK = 0, 1, 2


class TextEncoder(Protocol):
    """What ITIT asks of a text encoder, a `torch.nn.Module` whose parameters take no gradient.

    Its vocabulary is that of the captions: the text decoder writes ids that it reads (see `objectives.i2t2i`).

    Attributes:
      config: the `config.T5Config` that it was built from; `family` and `dim`, F, are read by others.
      token_embed: `torch.nn.Embedding` [V, F], the table that a soft one-hot multiplies.
    """

    def __init__(self, config):
        """Its weights are for `init_weights` or `load_state_dict` to set."""

    def __call__(self, ids=None, embeds=None, mask=None):
        """Features float [B, L, F] of ids int64 [B, L], or of mixtures of rows of the table, float [B, L, F], to which
        gradients flow. `mask`: bool [B, L], True at words; what is False is not seen, and its features are finite."""

    def init_weights(self, seed):
        """Random weights, a function of the seed."""


class Tokenizer(Protocol):
    """Texts to ids and back; made from the path of a vocabulary. `num_pieces`: ids that it knows."""

    def encode(self, texts, num_text_tokens):
        """list of B str -> int64 [B, L]: words, EOS, PAD to the end; a text that is too long is cut, EOS kept."""

    def decode(self, ids):
        """int [L] -> str, int [.., L] -> nested lists of str."""


class Family(NamedTuple):
    """A row: what it is called, and places of its network (TextEncoder), its Tokenizer, and what makes ids of the texts
    in records: (path of a vocabulary, L) -> a function from list of B str to int64 [B, L], with `num_cut`."""

    title: str
    network: str
    tokenizer: str
    reader: str


FAMILIES = {
    "t5": Family("T5", "itit.models.t5:T5Encoder", "itit.data.text:Tokenizer", "itit.data.preprocess:TextTokenizer"),
}


def network(config, place=""):
    """The class of a T5Config's text encoder. Raises ValueError, which begins with `place`, for an unknown family."""
    if config.family not in FAMILIES:
        raise ValueError(f"{place}family {config.family!r}: known are {', '.join(FAMILIES)}")
    return _at(FAMILIES[config.family].network)


def tokenizer(config, path=None):
    """The Tokenizer of a Config, None where it has no vocabulary. `path`: where that is now."""
    path = path or config.data.vocabulary
    return _at(FAMILIES[config.t5.family].tokenizer)(path) if path else None


def reader(config):
    """What makes ids of the texts in records (see `Family`)."""
    return _at(FAMILIES[config.t5.family].reader)(config.data.vocabulary, config.model.num_text_tokens)


def _at(place):
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
