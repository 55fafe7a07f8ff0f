"""`python -m tools.export --workdir=RUN --output=DIR`: a trained ITIT as a folder to take elsewhere.

    model.safetensors   ITIT's weights; its metadata hold sizes, settings of decoding, and where the other parts are
    vqgan/, t5/         the frozen networks: config.json, model.safetensors, hashes.json
    vocabulary.model    SentencePiece
    training.cfg        every setting of the run
    hashes.json         bytes and SHA-256
    README.md           model card, from the run's own record

A T5 above --max_copied_gib stays where it is and is named with its SHA-256; a random one is always copied. The folder
loads in plain torch: `itit.ITIT.from_pretrained(DIR)`, or the network alone by `itit.models.load(DIR)`.
"""

import json
import os

from absl import flags

import itit
from itit import config as config_lib
from itit import flags as flags_lib
from itit import storage
from itit.checkpoint import tensorfile, weights, weightsdir
from itit.training import runs
from itit.training.state import DTYPES, check_frozen, fingerprint, text_encoder, vocabulary_of
from tools.convert import model_card
from tools.data.splits import new_folder

VOCABULARY, SETTINGS, CARD = "vocabulary.model", "training.cfg", "README.md"


def stored(tensors, dtype):
    """Weights by name, those of a floating type in `dtype`, "bf16" or "fp32"; None: as they are."""
    return {name: t.to(DTYPES[dtype]) if dtype and t.is_floating_point() else t for name, t in tensors.items()}


def write_part(folder, name, module, dtype):
    """A frozen network as a folder in `folder`. Returns what the record says of it."""
    weightsdir.save(storage.join(folder, name), stored(module.state_dict(), dtype), module.config)
    hashes = weightsdir.hashes_of(storage.join(folder, name))
    return {"path": name, "sha256": hashes[weightsdir.WEIGHTS]}


def write_t5(folder, config, t5, max_bytes, dtype):
    """The text encoder: copied, or named where it is large."""
    num_bytes = sum(p.numel() * p.element_size() for p in t5.parameters())
    source = config.t5.weights
    if not source or num_bytes <= max_bytes:
        return write_part(folder, "t5", t5, dtype)
    path = storage.join(source, weightsdir.WEIGHTS)
    sha256 = weightsdir.hashes_of(source).get(weightsdir.WEIGHTS) or storage.sha256(path)
    return {"path": source if storage.is_remote(source) else os.path.abspath(source), "sha256": sha256}


def write_vocabulary(folder, config, hashes):
    """The vocabulary, or None where the run had none."""
    if not config.data.vocabulary:
        return None
    data = storage.read_bytes(config.data.vocabulary)
    storage.write_bytes(storage.join(folder, VOCABULARY), data)
    hashes[VOCABULARY] = weightsdir.hash_of(data)
    return {"path": VOCABULARY, "sha256": hashes[VOCABULARY]["sha256"]}


def export(config, found, output, averaged, max_bytes, report, dtype=None, about="", prompt=""):
    """Writes the folder. `found`: what `runs.restore` gave; for the rest see the flags. Returns the record."""
    step, tensors, meta = found
    place = f"{config.train.workdir}, checkpoint of step {step}"
    tensors, averaged = runs.choose(tensors, averaged, place)
    runs.build(config, tensors, place)
    t5 = text_encoder(config)
    vqgan = weights.load_vqgan(config.data.vqgan) if config.data.vqgan else None
    networks = {"t5_weights": t5} | ({"vqgan": vqgan} if vqgan else {})
    check_frozen({n: fingerprint(network) for n, network in networks.items()} | vocabulary_of(config), meta, place)
    with new_folder(output, repeatable=True) as staging:
        hashes = {}
        parts = {
            "t5": write_t5(staging, config, t5, max_bytes, dtype),
            "vqgan": write_part(staging, "vqgan", vqgan, dtype) if vqgan else None,
            "vocabulary": write_vocabulary(staging, config, hashes),
        }
        record = make_record(config, step, averaged, parts) | {"about": about, "prompt": prompt}
        tensors = stored(tensors, dtype)
        layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        hashes[weightsdir.WEIGHTS] = tensorfile.write(
            storage.join(staging, weightsdir.WEIGHTS), layout, tensors.values(), {weights.RECORD: json.dumps(record)}
        )
        sha256, history = hashes[weightsdir.WEIGHTS]["sha256"], runs.history(config.train.workdir)
        card = model_card.write(config, record, sha256, tensors, report, history)
        for name, text in ((SETTINGS, flags_lib.to_flagfile(config)), (CARD, card)):
            storage.write_bytes(storage.join(staging, name), text.encode())
            hashes[name] = weightsdir.hash_of(text.encode())
        weightsdir.write_hashes(staging, hashes)
    return record


def make_record(config, step, averaged, parts):
    """What a model needs to know to be used: JSON. `parts`: name -> {"path", "sha256"} or None."""
    config = config_lib.replace(config, t5_weights="")
    return {
        "itit_version": itit.__version__,
        "step": step,
        "averaged": averaged,
        "parts": parts,
        "compute_dtype": config.train.compute_dtype,
        "config": {name: json.loads(config_lib.to_json(getattr(config, name))) for name in weights.SECTIONS},
    }


def read_report(path):
    """The scores in a report.json. Raises ValueError where it is absent or no JSON object."""
    if not storage.exists(path):
        raise ValueError(f"--report={path}: no such file")
    with storage.open(path) as file:
        try:
            report = json.loads(file.read())
        except ValueError as error:
            raise ValueError(f"--report={path}: not JSON: {error}") from None
    if not isinstance(report, dict):
        raise ValueError(f"--report={path}: not a JSON object")
    return report


def main(_):
    flag = flags.FLAGS
    moved = {name: getattr(flag, name) for name in ("workdir", "t5_weights", "vqgan", "vocabulary")}
    config = runs.settings(flag.workdir, moved=moved)
    found = runs.restore(flag.workdir, flag.step)
    beside = storage.join(flag.workdir, "report.json")
    path = flag.report or (beside if storage.exists(beside) else "")
    report = read_report(path) if path else None
    told = {"dtype": flag.dtype, "about": flag.about, "prompt": flag.prompt}
    record = export(config, found, flag.output, flag.ema, flag.max_copied_gib * 2**30, report, **told)
    kind = "averaged" if record["averaged"] else "raw"
    print(f"{flag.output}: step {record['step']}, {kind} weights")
    for name, part in record["parts"].items():
        print(f"  {name}: {part['path'] if part else 'none; give from_pretrained one'}")


def define_flags():
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("output", None, "New folder.", required=True)
    flags.DEFINE_boolean("ema", None, "Averaged weights, or (--noema) raw; by default averaged where the run has them.")
    flags.DEFINE_integer("step", None, "Checkpoint; by default the newest whole one.")
    flags.DEFINE_enum("dtype", None, list(DTYPES), "Type that all weights are stored in; by default each as it is.")
    flags.DEFINE_string("about", "", "What the model can do, in a sentence or two, for the model card and the demo.")
    flags.DEFINE_string("prompt", "", "A text like those it was trained on, for the same.")
    flags.DEFINE_string("report", "", "report.json of scores for the model card; by default the one in --workdir.")
    flags.DEFINE_float("max_copied_gib", 2.0, "Larger text encoders are named and not copied.", lower_bound=0)
    for name, what in (("t5_weights", "text encoder"), ("vqgan", "image tokenizer"), ("vocabulary", "vocabulary")):
        flags.DEFINE_string(name, "", f"Where the run's {what} is now, if it was moved.")


if __name__ == "__main__":
    define_flags()
    flags_lib.run_main(main)
