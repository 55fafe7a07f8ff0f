"""Which dimension of which tensor is split over which axis of the mesh. Pure Python; `mesh.py` applies it.

The mesh has two axes: "data", over which weights are copied, and "fsdp", over which they are split. The batch is split
over both. Weights are gathered where they are used, so the table below only says where each is kept. Of what is trained
a step changes every number once: of matrices, moments, averages and the weights of linear maps are split over a part
of "data", too, an axis of its own, "part", where products take casts of the weights, made once a step and copied over
"data". Vectors are small, and whole.
"""

import re
from typing import NamedTuple

PART, DATA, FSDP = "part", "data", "fsdp"
BATCH = (PART, DATA, FSDP)
TRAINED = (FSDP, PART)  # a part of what the cast's part is: casts are gathered over "part" alone
# Into no more parts, all matrices of the paper's models are cut between tiles of a TPU, 8 rows or columns each. Cut
# within tiles, the compiler gathers by adding up zeros, which takes twice as long.
MAX_PARTS = 32
MODEL = "model"  # before the names of the weights in `State.tensors()`

# Pattern of a name -> the dimension that is split over "fsdp", the first match counts. Token tables are split along
# their width, which every lookup and product with them leaves whole rows of; position tables and vectors are small.
RULES = (
    (r"(^|/|\.)(image_|text_)?positions$", None),
    (r"token_embed\.weight$", 1),
    (r"codebook\.weight$", None),
    (r"position_bias\.weight$", None),
    (r"\.weight$", 0),
    (r"", None),
)


def axes(data, fsdp):
    """The mesh as a grid: axis -> devices along it, in the order of their numbers; "part" times "data" is `data`."""
    parts = max(n for n in range(1, max(1, MAX_PARTS // fsdp) + 1) if data % n == 0)
    return {PART: parts, DATA: data // parts, FSDP: fsdp}


def split_dim(name, shape, fsdp):
    """The dimension of a parameter that is split over "fsdp", or None: kept whole where no matrix or not divisible."""
    dim = next(dim for pattern, dim in RULES if re.search(pattern, name))
    if dim is None or len(shape) < 2:
        return None
    # A weight whose first choice does not divide is split along the other side.
    return next((d for d in (dim, 1 - dim) if shape[d] % fsdp == 0), None)


def parameter_spec(name, shape, fsdp):
    """Mesh axis of each dimension of a parameter: a tuple of "fsdp" or None."""
    split = split_dim(name, shape, fsdp)
    return tuple(FSDP if dim == split else None for dim in range(len(shape)))


def state_spec(name, shape, data, fsdp, parameter_shapes, cast=()):
    """The same for a tensor of `State.tensors()`, by its name there: axes are "fsdp", TRAINED or None.

    Args:
      parameter_shapes: parameter name -> shape.
      cast: names of parameters that products take casts of, made ahead.
    """
    kind, _, parameter = name.rpartition("/")
    if parameter not in parameter_shapes:  # the step count
        return (None,) * len(shape)
    whole = parameter_shapes[parameter]
    spec = parameter_spec(parameter, whole, fsdp)
    if kind != MODEL or parameter in cast and not parameter.endswith("token_embed.weight"):  # which is looked up, too
        parts = axes(data, fsdp)[PART] * fsdp
        split = split_dim(parameter, whole, parts)
        spec = spec if split is None else tuple(TRAINED if dim == split else None for dim in range(len(whole)))
    if len(shape) == len(spec):
        return spec
    # A factored second moment: the row means lie along the first dimension, the column means along the second.
    return (spec[1 if kind.endswith("square1") else 0],)


def batch_spec(shape, num_devices):
    """Rows over both axes, or nothing split where they do not divide."""
    if not shape or shape[0] % num_devices:
        return (None,) * len(shape)
    return (BATCH, *(None,) * (len(shape) - 1))


def mesh_shape(data, fsdp, num_devices):
    """(data, fsdp) with 0 filled in: fsdp up to 8 devices, data the rest. ValueError where they do not multiply up."""
    fsdp = fsdp or (num_devices // data if data and num_devices % data == 0 else max(
        size for size in range(1, 9) if num_devices % size == 0))  # fmt: skip
    data = data or max(1, num_devices // fsdp)
    if data * fsdp != num_devices:
        raise ValueError(f"--mesh_data={data} --mesh_fsdp={fsdp}: their product must be the {num_devices} devices")
    return data, fsdp


class Program(NamedTuple):
    """One program of a step.

    name: such as "update". calls: how often a step runs it. hlo: HloModuleProto of global shapes. inputs, outputs: a
    (shape, spec) for each parameter and result. donated: pairs (parameter, result) that share memory. specs: sharding
    as it stands in `hlo` -> spec.
    """

    name: str
    calls: int
    hlo: bytes
    inputs: tuple
    outputs: tuple
    donated: tuple
    specs: dict
