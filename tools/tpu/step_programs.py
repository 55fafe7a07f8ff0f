"""Where pre-flight takes the step from: the programs that a training step on XLA consists of, traced from nothing."""

import contextlib

import torch

from itit import text_encoders
from itit.models import VQGAN, ITITModel, Text
from itit.models.layers import set_compute_dtype
from itit.optim import Adafactor, Ema
from itit.program import running
from itit.tasks import TASKS
from itit.train_step import State, train_step
from itit.training.state import DTYPES
from itit.xla import sharding
from tools.timing import parts

META = torch.device("meta")
TRACED = (2, 4)  # the mesh it is traced on: two sizes, so that an axis is told by how it splits


def programs(config, active, vqgan=None, meant=None):
    """The Programs of a step (see itit/xla/tracing.py), for a resolved Config.

    Args:
      active: task -> samples (see `train_step.tasks`).
      vqgan: VqganConfig where pictures are tokenized in the step, None where codes are ready.
      meant: (data, fsdp) of the mesh that they are for.
    """
    from itit.xla import tracing  # after the environment is set, and not before it is known that it can be done

    mesh = tracing.TracedMesh(*TRACED, config.train.matmul_precision, meant)
    state = empty_state(config, vqgan, mesh)
    batch = empty_batch(config, active, vqgan, mesh)
    noises = [mesh.noise(0, 0, part) for part in range(config.optim.num_microbatches)]
    # Scopes are of the thread.
    with torch.autograd.set_multithreading_enabled(False), labelled(state, tracing), running(mesh.run):
        train_step(state, batch, noises, 1e-4, config, active)
    return mesh.run.programs


def labelled(state, tracing):
    """Inside, the operations of a part carry its name, those of its backward pass included."""
    stack = contextlib.ExitStack()
    stack.enter_context(parts.labelled(state, tracing.scope, tracing.leave))
    stack.callback(tracing.end_backward)
    return stack


class Nowhere:
    """In the place of a mesh, for `empty_state` and `empty_batch`: tensors without numbers."""

    def rows(self, shape, dtype):
        return torch.empty(shape, dtype=dtype, device=META)

    def adopt(self, module):
        return module

    def place_state(self, state):
        """Nothing: it lies nowhere."""

    def pack(self, state):
        """Nothing."""


def empty_state(config, vqgan, mesh):
    """A State of placeholders. `mesh`: a `TracedMesh` or `Nowhere`."""
    with META:
        t5 = text_encoders.network(config.t5)(config.t5).to(DTYPES[config.train.compute_dtype])
        model = ITITModel(config.model)
        tokenizer = VQGAN(vqgan).eval() if vqgan else None
    for module in (t5, model, tokenizer):
        if module is not None:
            mesh.adopt(module.requires_grad_(module is model))
    set_compute_dtype(model, DTYPES[config.train.compute_dtype])
    optimizer = Adafactor(model.named_parameters(), config.optim)
    ema = Ema(model.named_parameters(), config.optim.ema_decay) if config.optim.ema_decay else None
    length = config.model.num_text_tokens
    nothing = Text(mesh.rows((1, length, config.t5.dim), torch.float32), mesh.rows((1, length), torch.bool))
    state = State(model, t5, tokenizer, nothing, optimizer, ema)
    mesh.place_state(state)
    mesh.pack(state)
    return state


def empty_batch(config, active, vqgan, mesh):
    """A batch of placeholders, as `Streams.batch` and `to_device` make it."""
    m, batch = config.model, {}
    for task, rows in active.items():
        if TASKS[task].has_picture:
            if vqgan:
                side = vqgan.image_size
                batch[f"{task}/images"] = mesh.rows((rows, side, side, 3), torch.uint8)
            else:
                batch[f"{task}/image_ids"] = mesh.rows((rows, m.num_image_tokens), torch.int64)
        if TASKS[task].has_text:
            batch[f"{task}/text_ids"] = mesh.rows((rows, m.num_text_tokens), torch.int64)
    return batch


def mesh_of(config, num_chips):
    """(data, fsdp) of the mesh. Raises ValueError where it does not match the chips."""
    return sharding.mesh_shape(config.train.mesh_data, config.train.mesh_fsdp, num_chips)
