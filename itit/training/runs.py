"""What a run left behind, to use it: its settings, and ITIT's weights out of a checkpoint."""

import re

from itit import flagfiles, flags, storage
from itit.checkpoint import store, weights, weightsdir
from itit.config import replace
from itit.models import ITITModel
from itit.training.taken import TAKEN, settle

MODEL, EMA = "model/", "ema/"
# The settings as they are, and as they were until a step from which on they were others.
SETTINGS, FORMER = "resolved.cfg", "resolved-until-{:08d}.cfg"


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
    if not storage.exists(path) or store.latest_step(workdir) is None:
        path = storage.join(init_from, SETTINGS)
    if storage.exists(path):
        return {path: {name: int(value) for name, value in _lines(path).items() if name in TAKEN}}
    if init_from:
        path, _ = weights.exported_file(init_from)
        model = weights.sections_of(weights.read_record(path), path)["model"]
        return {path: {name: getattr(model, name) for name in TAKEN if hasattr(model, name)}}
    return {}


def keep_settings(workdir, config, step):
    """Writes the settings of a start at `step` into a run's folder, and keeps those before it, where they were others.

    Returns flag -> (text of the value before, text of the value now; None is not there), of what has changed.
    """
    path, former = storage.join(workdir, SETTINGS), _former(workdir)
    again = {until: old for until, old in former.items() if until >= step}  # what was trained since is trained again
    before, kept = again[min(again)] if again else path, storage.join(workdir, FORMER.format(step))
    old, new = _lines(before) if step and storage.exists(before) else {}, flags.texts(config)
    changed = {name: (old.get(name), new.get(name)) for name in old | new if old and old.get(name) != new.get(name)}
    if changed:
        storage.write_bytes(kept, storage.read_bytes(before))
    storage.write_bytes(path, flags.to_flagfile(config).encode())
    for stale in again.values():
        if stale != kept or not changed:
            storage.remove_tree(stale)
    return changed


def copy_settings(workdir, folder):
    """Copies all that `keep_settings` has written into another folder."""
    storage.make_dirs(folder)
    for stale in _former(folder).values():
        storage.remove_tree(stale)
    for path in (*_former(workdir).values(), storage.join(workdir, SETTINGS)):
        storage.write_bytes(storage.join(folder, path.rpartition("/")[2]), storage.read_bytes(path))


def history(workdir):
    """The settings of a run from its beginning: list of (the step that they began at, flag -> text of its value)."""
    former = sorted(_former(workdir).items())
    paths = [path for _, path in former] + [storage.join(workdir, SETTINGS)]
    return list(zip([0, *(until for until, _ in former)], map(_lines, paths), strict=True))


def _former(workdir):
    """Step -> the file of the settings until then."""
    pattern = re.compile(FORMER.replace("{:08d}", r"(\d+)"))
    found = {name: pattern.fullmatch(name) for name in storage.list_dir(workdir)}
    return {int(match[1]): storage.join(workdir, name) for name, match in found.items() if match}


def _lines(path):
    """Flag -> text of its value, of a flagfile that `to_flagfile` wrote, also if by another version."""
    return dict(line.removeprefix("--").partition("=")[::2] for line in flagfiles.read(path))


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
    model = weights.blank(ITITModel, config.model)
    weights.load_module(model, tensors, f"{place} does not fit its {SETTINGS}", assign=True)
    return model.eval()
