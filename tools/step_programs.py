"""Where pre-flight takes the step from: the programs that a training step on XLA consists of. The only place that asks.

Stands in for `itit.xla.trace_step` and `itit.sharding.mesh_shape` until they are there. torch_xla reads the environment
that `preflight.py` sets when it is imported: import `itit.xla` inside `programs`.
"""

from typing import NamedTuple


class Program(NamedTuple):
    """One compiled graph of the step, traced on 2 x 4 devices with the global batch.

    name: such as "update". calls: how often a step runs it. hlo: HloModuleProto of global shapes. inputs, outputs: a
    (shape, spec) for each parameter and result; outputs None where left to the compiler. donated: pairs (parameter,
    result) that share memory. specs: sharding as it stands in `hlo` -> spec.
    """

    name: str
    calls: int
    hlo: bytes
    inputs: tuple
    outputs: tuple | None
    donated: tuple
    specs: dict


def programs(config):
    """The Programs of a step. Raises ValueError, one line, where there is no such step."""
    raise ValueError("--backend=xla: not there yet")


def mesh_of(config, num_chips):
    """(data, fsdp) of the mesh. Raises ValueError where it does not match the chips."""
    fsdp = max(size for size in range(1, 9) if num_chips % size == 0)
    return num_chips // fsdp, fsdp
