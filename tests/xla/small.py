"""What these tests share: a mesh, and the very small State of tests/tiny.py on it."""

import os

import torch

from itit import xla
from itit.backend import Local
from itit.config import TrainConfig
from itit.models import Text
from itit.noise import CounterNoise, counter_key
from itit.optim import Adafactor, Ema, global_norm
from itit.state import fingerprint
from itit.train_step import State, tasks, train_step
from tests.tiny import TASKS, make_config, make_state, random_batch

NUM_DEVICES = int(os.environ["CPU_NUM_DEVICES"])
MESHES = {1: [(1, 1)], 8: [(8, 1), (4, 2), (1, 8)]}[NUM_DEVICES]


class Gradients:
    """In an optimizer's place: keeps the gradients instead of using them."""

    def __init__(self, named_parameters, config):
        self.parameters = dict(named_parameters)
        self.found = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def state(self):
        return self.found

    @torch.no_grad()
    def step(self, rate, finite):
        norm = global_norm([p.grad for p in self.parameters.values()])
        for name, p in self.parameters.items():
            self.found[name].copy_(p.grad)
            p.grad = None
        return norm, torch.isfinite(norm) & finite


def connect(data, fsdp, **values):
    return xla.connect(TrainConfig(mesh_data=data, mesh_fsdp=fsdp, xla_cache="", **values))


def config_of(**flags):
    return make_config(**{"dropout": 0.1, **{f"{task}_batch": 8 for task in TASKS}, **flags})


def states(mesh, config, seed, optimizer=Adafactor):
    """The same State on the processor and on the mesh."""
    made = []
    for backend in (Local("cpu"), mesh):
        state = make_state(config, seed)
        state.t5.fingerprint = fingerprint(state.t5)
        model, t5 = backend.adopt(state.model), backend.adopt(state.t5)
        ema = Ema(model.named_parameters(), config.optim.ema_decay) if config.optim.ema_decay else None
        nothing = Text(*(x.to(backend.device) for x in state.t5_of_nothing))
        made.append(State(model, t5, None, nothing, optimizer(model.named_parameters(), config.optim), ema))
        backend.place_state(made[-1])
    return made


def plain_step(state, config, step, rate=1e-3):
    noises = [CounterNoise(counter_key(5, step, part)) for part in range(config.optim.num_microbatches)]
    return train_step(state, random_batch(config, 100 + step), noises, rate, config, tasks(config, step))


def mesh_step(mesh, state, config, step, rate=1e-3):
    noises = [mesh.noise(5, step, part) for part in range(config.optim.num_microbatches)]
    batch = mesh.to_device(random_batch(config, 100 + step))
    return train_step(state, batch, noises, rate, config, tasks(config, step), mesh.run)
