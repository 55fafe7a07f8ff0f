"""What a run left behind, to use it: its settings, and ITIT's weights out of a checkpoint."""

from itit import flags, storage
from itit.checkpoint import store, weights, weightsdir
from itit.config import replace
from itit.models import ITIT
from itit.training.state import settle

MODEL, EMA = "model/", "ema/"
SETTINGS = "resolved.cfg"


def settings(workdir, flag="workdir"):
    """The Config of the run in `workdir`, given by --`flag`. Raises ValueError, one line: there is no run in it."""
    path = storage.join(workdir, SETTINGS)
    if storage.exists(path):
        return flags.from_flagfile(path)
    if storage.exists(storage.join(workdir, weightsdir.WEIGHTS)):
        raise ValueError(f"--{flag}={workdir}: no run, but an export: --model={workdir}")
    raise ValueError(f"--{flag}={workdir}: no run there, which would have {SETTINGS}")


def read_config(workdir, moved):
    """The run's Config. `moved`: flag -> where a part is now, or ""."""
    config = settings(workdir)
    return settle(replace(config, **{name: value for name, value in moved.items() if value}))


def restore(workdir, step=None):
    """`store.restore` of the weights and their averages, on the CPU; what the optimizer keeps is not read.

    Raises ValueError where there is no checkpoint.
    """
    found = store.restore(workdir, _weights, step=step)
    if found is None:
        raise ValueError(f"--workdir={workdir}: no checkpoint in it")
    return found


def _weights(step, reader, meta):
    return {name: reader.read(name) for name in reader.shapes if name.startswith((MODEL, EMA))}


def choose(tensors, averaged, place):
    """ITIT's weights out of a checkpoint: (name -> tensor, whether they are averaged ones).

    Args:
      averaged: the moving average, the weights themselves, or (None) the average where there is one.

    Raises ValueError where an average is asked for that the run did not keep.
    """
    own = {n.removeprefix(MODEL): t for n, t in tensors.items() if n.startswith(MODEL)}
    average = {n.removeprefix(EMA): t for n, t in tensors.items() if n.startswith(EMA)}
    if averaged and not average:
        raise ValueError(f"--ema: {place} holds no averaged weights; the run had --ema_decay=0")
    averaged = bool(average) if averaged is None else averaged
    return (own | average if averaged else own), averaged


def build(config, tensors, place):
    """The network. Raises ValueError where the weights are not of the model that the run's settings describe."""
    model = weights.blank(ITIT, config.model)
    weights.load_module(model, tensors, f"{place} does not fit its {SETTINGS}", assign=True)
    return model.eval()
