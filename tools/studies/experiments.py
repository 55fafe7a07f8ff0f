"""Experiments and studies of them, as values: what they train, on which data, and which of them are the same.

A run is an experiment with one of its seeds.
"""

import dataclasses
import hashlib
import json

from itit import config as config_lib
from itit.tasks import batches

AMOUNTS = ("pairs", "images", "texts", "extra")
# The study sets these itself.
OWN = ("workdir", "seed", "stop_after_steps", "vocabulary", "vqgan", "paired_data", "image_data", "text_data",
       "eval_data")  # fmt: skip
# How and where a run goes, not what comes out.
INCIDENTAL = {
    "preset", "t5_size", *OWN, "prefetch", "read_ahead_mib", "read_requests", "num_workers", "max_bad_records",
    "backend", "cuda_graphs", "mesh_data", "mesh_fsdp", "xla_mode", "xla_cache", "profile_step", "log_every",
    "sample_every", "num_samples", "eval_every", "num_eval", "eval_scenes", "keep_best", "checkpoint_every",
    "keep_last", "keep_every", "watchdog_factor", "watchdog_seconds",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """One experiment; every seed of it is a run.

    Attributes: `values`: amount -> number or "pairs", of the data that it uses; `flags`: changes of the base, as the
    training takes them; `config`: resolved; `paper`: name -> number.
    """

    name: str
    about: str
    paper: dict
    series: str
    seeds: tuple
    values: dict
    flags: tuple
    config: config_lib.Config

    @property
    def settings(self):
        """Flag -> value of what differs from the defaults and decides the result."""
        standard, mine = dict(flags_of(config_lib.Config().resolve())), dict(flags_of(self.config))
        off = [task for task, size in batches(self.config.objective).items() if not size]
        idle = INCIDENTAL | {f"{task}_{what}" for task in off for what in ("weight", "warmup_steps")}
        return {name: value for name, value in mine.items() if name not in idle and value != standard[name]}


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A file as read. Attributes as in study_file.py; `name` is that of the file without its ending."""

    name: str
    path: str
    title: str
    about: str
    base: str
    test: int
    data_seed: int
    vqgan: str
    eval: str
    plot: str
    x: str
    log_x: bool
    x_label: str
    experiments: tuple

    @property
    def runs(self):
        """List of (experiment, seed), in the order of the file."""
        return [(experiment, seed) for experiment in self.experiments for seed in experiment.seeds]

    def data(self, experiment):
        """What the data of an experiment are, JSON values; which pairs are drawn, the seed of the run says besides."""
        shared = {"data_seed": self.data_seed, "test": self.test, "tokenizer": digest(read_plain(self.vqgan))}
        return experiment.values | shared

    def digest(self, experiment, seed):
        """Tells a run from all others: of settings, data and seed."""
        return digest({"settings": experiment.settings, "data": self.data(experiment), "seed": seed})

    def x_of(self, experiment):
        """The place of an experiment on the axis."""
        if self.x in AMOUNTS:
            return _number(experiment, self.x)
        if self.x == "total":
            return sum(_number(experiment, name) for name in AMOUNTS)
        return dict(flags_of(experiment.config))[self.x]


def digest(value):
    """Twelve hex digits of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read_plain(path):
    """The lines of a flagfile without comments, sorted."""
    with open(path, encoding="utf-8") as file:
        return sorted(line.strip() for line in file if line.strip() and not line.startswith("#"))


def _number(experiment, name):
    """How much of this an experiment has; what it takes from the pairs is not more."""
    value = experiment.values.get(name, 0)
    return 0 if value == "pairs" else value


def flags_of(config):
    """Yields (flag, value)."""
    for name, owner, field in config_lib.fields(config):
        yield name, getattr(getattr(config, owner), field.name)
