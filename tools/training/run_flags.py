"""The flags of a run that the trainers among the tools share with ITIT's own: a part of `config.TrainConfig`."""

import dataclasses

from itit import flags as flags_lib
from itit.config import TrainConfig, knob

TAKEN = ("seed", "backend", "mesh_data", "mesh_fsdp", "xla_mode", "xla_cache", "profile_step", "matmul_precision",
         "log_every", "sample_every", "num_samples", "checkpoint_every", "keep_last", "stop_after_steps")  # fmt: skip


def section(without=(), **defaults):
    """The settings named in TAKEN as a dataclass, some left out, some with defaults of the tool's own."""
    own = []
    for field in dataclasses.fields(TrainConfig):
        if field.name in TAKEN and field.name not in without:
            default = defaults.pop(field.name, field.default)
            own.append((field.name, field.type, knob(default, field.metadata["help"], field.metadata["choices"])))
    assert not defaults, f"no such setting: {defaults}"
    return dataclasses.make_dataclass("Run", own, frozen=True)()


def train_config(settings, workdir, **values):
    """The TrainConfig of parsed flags. Raises ValueError for numbers outside their ranges."""
    return TrainConfig(workdir=workdir, **dataclasses.asdict(flags_lib.from_flags(settings)), **values)


def values_of(*sections):
    """Name -> value, as JSON keeps it, of all settings of these sections: what a run must be gone on with."""
    values = {name: value for section in sections for name, value in dataclasses.asdict(section).items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
