"""What a run left behind, to use it: its settings, and ITIT's weights out of a checkpoint."""

from itit import flags, storage
from itit.checkpoint import store, weights, weightsdir
from itit.config import replace, values_of
from itit.models import ITIT
from itit.training.taken import TAKEN, settle

MODEL, EMA = "model/", "ema/"
SETTINGS = "resolved.cfg"


def settings(workdir, flag="workdir", moved=None):
    """The Config of the run in `workdir`, given by --`flag`, settled.

    Args:
      moved: flag -> where a part is now, or "".

    Raises ValueError, one line: there is no run in it, or a file that it names is gone or another one.
    """
    path = storage.join(workdir, SETTINGS)
    if storage.exists(path):
        changes = {name: value for name, value in (moved or {}).items() if value}
        return settle(replace(flags.from_flagfile(path), **changes))
    if storage.exists(storage.join(workdir, weightsdir.WEIGHTS)):
        raise ValueError(f"--{flag}={workdir}: no run, but an export: --model={workdir}")
    raise ValueError(f"--{flag}={workdir}: no run there, which would have {SETTINGS}")


def sizes(workdir, init_from=""):
    """What a run must keep of the one that it goes on with: place -> {flag: value}, as `settle` takes it.

    Args:
      workdir: with checkpoints, of the run itself; else nothing is kept of it.
      init_from: export or workdir whose weights a new run begins with.
    """
    path = storage.join(workdir, SETTINGS)
    if storage.exists(path) and store.latest_step(workdir) is not None:
        return {path: _taken(flags.from_flagfile(path))}
    path = storage.join(init_from, SETTINGS)
    if storage.exists(path):
        return {path: _taken(flags.from_flagfile(path))}
    if init_from:
        path, _ = weights.exported_file(init_from)
        return {path: _taken(weights.sections_of(weights.read_record(path), path)["model"])}
    return {}


def _taken(config):
    return {name: value for name, value in values_of(config).items() if name in TAKEN}


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
