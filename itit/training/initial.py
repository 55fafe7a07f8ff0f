"""Weights to begin a run with: ITIT's alone, out of an export or of another run (fine-tuning)."""

from absl import logging

from itit import storage
from itit.checkpoint import store, weights
from itit.checkpoint.tensorfile import TensorFile
from itit.training import runs
from itit.training.state import check_frozen, fingerprint, frozen


def initialise(path, state, backend, vocabulary=None):
    """Sets the weights of a fresh State, and their averages, to those of another model; the optimizer stays fresh.

    Args:
      path: folder that tools.export wrote, or workdir of a run: its newest checkpoint, averaged where it has averages.
      vocabulary: what `state.vocabulary_of` says.

    Raises ValueError, one line: nothing there, a tensor that is absent or of another shape, or frozen parts (text
    encoder, image tokenizer, vocabulary) that are not those that the model was trained with.
    """
    tensors, place = _read(path, state, vocabulary or {})
    wanted = {name: p for name, p in state.model.named_parameters()}
    misfits = [f"{name} is {_shape(tensors.get(name))}, this run has {tuple(p.shape)}" for name, p in wanted.items()
               if _shape(tensors.get(name)) != tuple(p.shape)]  # fmt: skip
    if misfits:
        more = f" ({len(misfits)} tensors in all do not fit)" if len(misfits) > 1 else ""
        raise ValueError(f"--init_from={path}: {misfits[0]}{more}")
    average = state.ema.state() if state.ema else {}
    for name, tensor in [*wanted.items(), *average.items()]:
        value = tensors[name].to(tensor.dtype)
        held = backend.held(tensor)
        backend.fill(tensor, {index: value[tuple(slice(*part) for part in index)] for index in held})
    logging.info("begins with the weights of %s", place)


def _shape(tensor):
    return None if tensor is None else tuple(tensor.shape)


def _read(path, state, vocabulary):
    """(name -> tensor on the CPU, what they are of)."""
    if storage.exists(storage.join(path, store.FOLDER)):
        step, tensors, meta = runs.restore(path)
        place = f"{path}, checkpoint of step {step}"
        check_frozen(frozen(state) | vocabulary, meta, place)
        return runs.choose(tensors, None, place)[0], place
    file, _ = weights.exported_file(path)
    record = weights.read_record(file)
    vqgan = record["parts"]["vqgan"]
    if vqgan and state.vqgan is not None:
        folder = storage.join(file.rpartition("/")[0], vqgan["path"])
        made = fingerprint(weights.load_vqgan(folder, vqgan["sha256"]))
        check_frozen({"vqgan": state.vqgan.fingerprint}, {"frozen": {"vqgan": made}}, path)
    words = record["parts"]["vocabulary"]
    check_frozen(vocabulary, {"frozen": {"vocabulary": words["sha256"]} if words else {}}, path)
    with TensorFile(file) as opened:
        tensors, _ = opened.read_all()
    return tensors, f"{path}, exported at step {record['step']}"
