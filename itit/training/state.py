"""What every main that runs ITIT begins with: the frozen parts, a fresh `State`, and saved weights in it.

A `backend` is where it runs (see backends/connect.py).

Shapes: B batch, N image tokens, S side of a picture in pixels.
"""

import concurrent.futures
import pathlib

import google_crc32c
import torch
from absl import logging

import itit
from itit import storage, text_encoders
from itit.checkpoint import weights
from itit.models import ITITModel, encode_text
from itit.models.layers import recompute_blocks, set_compute_dtype
from itit.objectives import empty_ids
from itit.optim import Adafactor, Ema
from itit.train_step import State

NUM_READERS = 16  # requests to gs:// at a time
OPTIONAL = {"optimizer/usual_norm"}  # begin afresh where a run is continued with settings that ask for them
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


# ---------------------------------------------------------------------------------------------- frozen parts


def text_encoder(config):
    """The frozen text encoder as it is stored, or at random, on the CPU."""
    if config.t5.weights:
        return weights.load_text_encoder(config.t5.weights)
    encoder = text_encoders.network(config.t5)(config.t5)
    encoder.init_weights(config.t5.seed)
    logging.warning("%s: no --t5_weights; RANDOM weights from --t5_seed=%d, frozen. They tell words and their order "
                    "apart, and know no language.", text_encoders.FAMILIES[config.t5.family].title,
                    config.t5.seed)  # fmt: skip
    return encoder


def make_text_encoder(config, backend):
    """The frozen text encoder, ready for a step."""
    return _freeze(text_encoder(config).to(DTYPES[config.train.compute_dtype]), backend)


def make_vqgan(config, backend):
    """The frozen image tokenizer, or None where none is given (ready ids, no pictures wanted)."""
    if not config.data.vqgan:
        return None
    return _freeze(weights.load_vqgan(config.data.vqgan), backend)


def _freeze(module, backend):
    """Notes the fingerprint while the weights are on the host: nothing is read back from the devices of a pod."""
    module.fingerprint = fingerprint(module)
    return backend.adopt(module)


# ---------------------------------------------------------------------------------------------- model and state


def make_state(config, backend):
    """Everything that a step needs, fresh from the seed."""
    t5, vqgan = make_text_encoder(config, backend), make_vqgan(config, backend)
    torch.manual_seed(config.train.seed)
    model = backend.adopt(ITITModel(config.model))
    set_compute_dtype(model, DTYPES[config.train.compute_dtype])
    if config.train.recompute_blocks:
        recompute_blocks(model)
    optimizer = Adafactor(model.named_parameters(), config.optim)
    ema = Ema(model.named_parameters(), config.optim.ema_decay) if config.optim.ema_decay else None
    nothing = encode_text(t5, empty_ids(config.model.num_text_tokens, backend.device))
    state = State(model, t5, vqgan, nothing, optimizer, ema, backend.across)
    backend.place_state(state)
    return state


def fingerprint(module):
    """Checksum of a frozen module's weights as bf16, so that it does not depend on --compute_dtype."""
    checksum = google_crc32c.Checksum()
    for _, tensor in sorted(module.state_dict().items()):
        checksum.update(tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return checksum.hexdigest().decode()


def code():
    """Checksum of the package, and torch's version."""
    checksum = google_crc32c.Checksum()
    for path in sorted(pathlib.Path(itit.__file__).parent.rglob("*.py")):
        checksum.update(path.read_bytes())
    return f"{checksum.hexdigest().decode()}, with torch {torch.__version__}"


def frozen(state):
    """What a checkpoint remembers of the frozen parts: name -> fingerprint. The image tokenizer may be left out."""
    parts = {"t5_weights": state.t5, "vqgan": state.vqgan}
    return {name: part.fingerprint for name, part in parts.items() if part is not None}


def vocabulary_of(config):
    """The same of the vocabulary, {} without one: others of equal size have valid ids, which mean something else."""
    path = config.data.vocabulary
    return {"vocabulary": storage.sha256(path)} if path else {}


def check_frozen(found, meta, place):
    """Raises ValueError where a frozen part (name -> fingerprint) is not the one that a checkpoint was trained with."""
    for name, now in found.items():
        then = meta["frozen"].get(name, now)
        if then != now:
            what = "another vocabulary" if name == "vocabulary" else "other weights"
            raise ValueError(f"--{name}: {place} was trained with {what} (checksum {then}, now {now})")


def load_state(state, reader, meta, place, backend):
    """Puts saved tensors into the state: of each, what this host's devices hold. `reader`: a `shards.Reader`.

    Raises ValueError naming the first that does not fit, or a frozen part that is not the one trained with: random T5
    weights are drawn again from their seed, and others would do silent harm.
    """
    check_frozen(frozen(state), meta, place)
    fill_state(state, reader, place, backend)


def fill_state(state, reader, place, backend):
    """Puts saved tensors into whatever has `tensors()`. Raises ValueError naming the first that does not fit."""
    tensors = {name: t for name, t in state.tensors().items() if name in reader.shapes or name not in OPTIONAL}
    for name, tensor in tensors.items():
        if name not in reader.shapes:
            raise ValueError(f"{place}: no {name} in it; was it saved with other settings?")
        if reader.shapes[name] != tensor.shape:
            raise ValueError(f"{place}: {name} is {reader.shapes[name]}, this run has {tuple(tensor.shape)}")
    held = {name: backend.held(tensor) for name, tensor in tensors.items()}

    def read(name):
        return {index: reader.read(name, index) for index in held[name]}

    with concurrent.futures.ThreadPoolExecutor(NUM_READERS, "restore") as pool:
        for parts, tensor in zip(pool.map(read, held), tensors.values(), strict=True):
            backend.fill(tensor, parts)


# ---------------------------------------------------------------------------------------------- samples


def image_ids_of(batch, state):
    """The codes, int64 [B, N], of a batch with "image_ids" or with "images", uint8 [B, S, S, 3]; without gradient."""
    if "image_ids" in batch:
        return batch["image_ids"]
    with torch.no_grad():
        return state.vqgan.tokenize(batch["images"])
