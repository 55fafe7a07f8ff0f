"""`python -m tools.convert_t5 --checkpoint=DIR --output=DIR`: a public T5 v1.1 or flan-T5 encoder for --t5_weights.

DIR is a folder as Hugging Face has them: config.json, spiece.model, and the weights as safetensors or PyTorch files, in
one file or in shards. A decoder beside the encoder is left out, and shards that hold nothing else may be absent.
Tensors pass one by one, so that memory stays far below the size of the file. Written: model.safetensors, config.json,
spiece.model and hashes.json, which also holds the SHA-256 of every file read, as the model's page shows them.
"""

import json

import torch
import tqdm
from absl import flags

from itit import storage
from itit.checkpoint import weightsdir
from itit.checkpoint.weights import blank
from itit.config import T5Config, from_json
from itit.data.text import Detokenizer
from itit.flags import run_main
from itit.models.layers import NORM_EPS
from itit.models.t5 import T5Encoder
from itit.presets import T5_PRESETS
from itit.untrusted import parse_json
from tools.convert.foreign import Checkpoint
from tools.data.splits import new_folder

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CONFIG, VOCABULARY = "config.json", "spiece.model"
# Ours -> theirs, in their config.json.
SIZES = {"dim": "d_model", "head_dim": "d_kv", "ff_dim": "d_ff", "num_layers": "num_layers", "num_heads": "num_heads",
         "vocab_size": "vocab_size"}  # fmt: skip
# Ours -> theirs, below a block.
BLOCK = {
    "attention_norm": "layer.0.layer_norm",
    "attention.query": "layer.0.SelfAttention.q",
    "attention.key": "layer.0.SelfAttention.k",
    "attention.value": "layer.0.SelfAttention.v",
    "attention.out": "layer.0.SelfAttention.o",
    "mlp_norm": "layer.1.layer_norm",
    "mlp.gate": "layer.1.DenseReluDense.wi_0",
    "mlp.up": "layer.1.DenseReluDense.wi_1",
    "mlp.down": "layer.1.DenseReluDense.wo",
}
OUTSIDE = {
    "token_embed": "shared",
    "position_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_norm": "encoder.final_layer_norm",
}
TABLE, TABLE_AGAIN = "shared.weight", "encoder.embed_tokens.weight"  # one tensor under two names
NOT_OURS = ("decoder.", "lm_head.")
V1_0 = "DenseReluDense.wi.weight"
NUM_NAMED = 3


def their_names(num_layers):
    """Name of each tensor in a checkpoint -> its name in `T5Encoder`."""
    names = {f"{theirs}.weight": f"{ours}.weight" for ours, theirs in OUTSIDE.items()}
    for i in range(num_layers):
        names |= {f"encoder.block.{i}.{theirs}.weight": f"blocks.{i}.{ours}.weight" for ours, theirs in BLOCK.items()}
    return names


def places(source, num_layers):
    """[(file, their name, our name)] in the order of the files.

    Raises ValueError naming the first keys that do not fit.
    """
    wanted = their_names(num_layers)
    held = {name for names in source.files.values() for name in names}
    if TABLE not in held:
        wanted[TABLE_AGAIN] = wanted.pop(TABLE)
    strange = [n for n in sorted(held - set(wanted) - {TABLE_AGAIN}) if not n.startswith(NOT_OURS)]
    absent = [n for n in wanted if n not in held]
    if strange or absent:
        kind = "T5 v1.0 (ReLU, tied), not v1.1" if any(V1_0 in n for n in strange) else "not a T5 v1.1 encoder"
        parts = [f"{what} {_first(names)}" for what, names in (("holds", strange), ("lacks", absent)) if names]
        raise ValueError(f"{source.folder}: {kind}: {'; '.join(parts)}")
    return [(file, name, wanted[name]) for file, names in source.files.items() for name in names if name in wanted]


def _first(names):
    more = len(names) - NUM_NAMED
    return ", ".join(names[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_config(folder):
    """Their config.json as a dict. Raises ValueError where it is absent or no JSON object."""
    path = storage.join(folder, CONFIG)
    if not storage.exists(path):
        raise ValueError(f"{folder}: no {CONFIG} in it")
    return parse_json(storage.read_small(path), path)


def translate(theirs, folder):
    """Their config as a T5Config. Raises ValueError for a network that computes something else."""
    values = {}
    for ours, name in SIZES.items():
        values[ours] = theirs.get(name)
        if not isinstance(values[ours], int) or values[ours] < 1:
            raise ValueError(f"{folder}: {CONFIG} says {name}={values[ours]!r}: must be a whole number above 0")
    expected = {"feed_forward_proj": ("relu", "gated-gelu"), "layer_norm_epsilon": (NORM_EPS, NORM_EPS),
                "dense_act_fn": ("gelu_new", "gelu_new")}  # fmt: skip
    for name, (default, wanted) in expected.items():
        if theirs.get(name, default) != wanted:
            raise ValueError(f"{folder}: {CONFIG} says {name}={theirs.get(name, default)!r}: must be {wanted!r}, "
                             "as T5 v1.1 has it")  # fmt: skip
    size = [name for name, preset in T5_PRESETS.items() if preset.items() <= values.items()]
    values |= {
        "size": size[0] if size else T5Config.size,
        "num_buckets": theirs.get("relative_attention_num_buckets", T5Config.num_buckets),
        "max_distance": theirs.get("relative_attention_max_distance", T5Config.max_distance),
    }
    return from_json(T5Config, json.dumps(values), storage.join(folder, CONFIG))


def converted(source, wanted, layout, bar):
    """Yields the tensors in the order of `wanted`. Raises ValueError for a wrong shape, and for NaN and infinity."""
    for file, theirs, ours in wanted:
        tensor = source.read(file, theirs)
        dtype, shape = layout[ours]
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{storage.join(source.folder, file)}: {theirs} is {tuple(tensor.shape)}, {CONFIG} says "
                             f"{tuple(shape)}")  # fmt: skip
        if not tensor.isfinite().all():
            raise ValueError(f"{storage.join(source.folder, file)}: {theirs} holds NaN or infinity")
        yield tensor.to(dtype)
        bar.update(tensor.numel())


def read_vocabulary(folder, config):
    """{file name: bytes} of the vocabulary, or {} where there is none. Raises ValueError where it does not fit."""
    path = storage.join(folder, VOCABULARY)
    if not storage.exists(path):
        print(f"warning: {folder}: no {VOCABULARY} in it; give one to --vocabulary when you train")
        return {}
    pieces = Detokenizer(path).num_pieces
    if pieces > config.vocab_size:
        raise ValueError(f"{path}: {pieces} pieces, more than the {config.vocab_size} rows of the encoder")
    with storage.open(path) as file:
        return {VOCABULARY: file.read()}


def convert(folder, output, dtype):
    """Converts a folder. Returns the T5Config."""
    theirs, source = read_config(folder), Checkpoint(folder)
    num_layers = theirs.get("num_layers")
    wanted = places(source, num_layers if isinstance(num_layers, int) and num_layers <= 1024 else 1)
    config = translate(theirs, folder)
    vocabulary = read_vocabulary(folder, config)
    held = sum(storage.size(storage.join(folder, file)) for file in {file for file, _, _ in wanted})  # bytes: or more
    shapes = {name: tensor.shape for name, tensor in blank(T5Encoder, config, held).state_dict().items()}
    layout = {ours: (DTYPES[dtype], shapes[ours]) for _, _, ours in wanted}
    total = sum(shape.numel() for shape in shapes.values())
    with new_folder(output, repeatable=True) as staging:
        used = [CONFIG, *dict.fromkeys(file for file, _, _ in wanted), *vocabulary]
        hashes = {}
        for name in tqdm.tqdm(used, "SHA-256", unit=" files", leave=False):
            path = storage.join(folder, name)
            hashes[name] = {"bytes": storage.size(path), "sha256": storage.sha256(path)}
        with tqdm.tqdm(total=total, desc="converting", unit=" parameters", unit_scale=True, leave=False) as bar:
            tensors = converted(source, wanted, layout, bar)
            weightsdir.stream(staging, layout, tensors, config, vocabulary, hashes)
        source.close()
    print(f"{output}: T5 encoder, {total / 1e6:.1f} M parameters as {dtype}, from {len(used)} files")
    return config


def define_flags():
    flags.DEFINE_string("checkpoint", None, "Folder with config.json, the weights and spiece.model.", required=True)
    flags.DEFINE_string("output", None, "New folder, for --t5_weights.", required=True)
    flags.DEFINE_enum("dtype", "bf16", tuple(DTYPES), "Type that the weights are stored in.")


def main(_):
    convert(flags.FLAGS.checkpoint, flags.FLAGS.output, flags.FLAGS.dtype)


if __name__ == "__main__":
    define_flags()
    run_main(main)
