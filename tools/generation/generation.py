"""What the tools that use a model share: their flags, loading, and exports of many pictures or captions.

An export is cut into batches by the places of its samples in their list; batch k belongs to host k % num_hosts. What a
batch gives depends on the batch alone, and its files appear whole: hosts need not know of each other, and a killed
export that is started again makes what is not there yet, and ends with the same files. Whoever finds all of them there
writes the index.
"""

import contextlib
import dataclasses
import hashlib
import json

import numpy as np
import tqdm
from PIL import Image

from itit import locks, sheets, storage
from itit.backends.connect import connect
from itit.config import DecodeConfig, TrainConfig, knob
from itit.data import text
from itit.pretrained import ITIT
from tools.data.damaged import Damage
from tools.data.splits import settle
from tools.generation import inputs

COLUMNS = 8  # of a contact sheet
FOLDERS = PICTURES, PARTS = "pictures", "parts"  # where an export makes files
WEIGHTS = {"auto": None, "averaged": True, "raw": False}


@dataclasses.dataclass(frozen=True)
class Loading:
    """Which model, where it runs."""

    model: str = knob("", "Folder that tools.export wrote, or a shipped model: scenes.")
    workdir: str = knob("", "In the place of --model: folder of a run.")
    step: int | None = knob(None, "Checkpoint of --workdir; by default the newest whole one.")
    weights: str = knob("auto", "Of --workdir; auto takes averaged ones where the run has them.", tuple(WEIGHTS))
    backend: str = knob("auto", "Where to run, as in training.")
    compile: bool = knob(False, "torch.compile of blocks and tokens, as in training; for many batches.")
    compute_dtype: str | None = knob(None, "Type of matrix products; by default that of training.", ("bf16", "fp32"))
    t5_weights: str = knob("", "Where the text encoder is, if it was moved or lies outside of the export.")
    vqgan: str = knob("", "Where the image tokenizer is now, if it was moved.")
    vocabulary: str = knob("", "Where the vocabulary is now, if it was moved.")
    batch_size: int = knob(16, "Samples at once.")


def _decoding(name, wanted, own):
    """A dataclass of settings: those of config.DecodeConfig that are `wanted` (by name), None by default, which is as
    in training, and some of its own, name -> (type, knob)."""
    found = [(name, *rest) for name, rest in own.items()]
    for field in dataclasses.fields(DecodeConfig):
        if wanted(field.name):
            kind = field.type if field.type is bool else field.type | None
            found.append((field.name, kind, knob(None, field.metadata["help"], field.metadata["choices"])))
    return dataclasses.make_dataclass(name, found, frozen=True)


# How pictures are drawn, and how captions are made.
_OF_CAPTIONS = ("beam_size", "length_penalty")
Drawing = _decoding(
    "Drawing",
    lambda name: name not in _OF_CAPTIONS and not name.startswith("synth_"),
    {"seed": (int, knob(0, "Seed of the noise; with its place among the prompts it makes a picture what it is."))},
)
Telling = _decoding("Telling", lambda name: name in _OF_CAPTIONS, {
    "candidates": (bool, knob(False, "Write down what the other beams found, with scores, too."))})  # fmt: skip


def decode_of(settings):
    """The settings of config.DecodeConfig in a Drawing or a Telling: name -> value."""
    known = {field.name for field in dataclasses.fields(DecodeConfig)}
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in known}


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Several processes, each with devices of its own, that share an export and its --output."""

    host_index: int = knob(0, "Which of --num_hosts this is.")
    num_hosts: int = knob(1, "Processes that share the work.")

    def check(self):
        """Raises ValueError naming the flag."""
        if not 0 <= self.host_index < self.num_hosts:
            raise ValueError(f"--host_index={self.host_index}: must be in [0, --num_hosts={self.num_hosts})")


def load(settings, shared=False):
    """The ITIT that a `Loading` names. `shared`: with other processes, see `Sharing`. Raises ValueError, one line."""
    if bool(settings.model) == bool(settings.workdir):
        raise ValueError("give --model=DIR (what tools.export wrote) or --workdir=DIR (a run), one of the two")
    where = connect(TrainConfig(backend=settings.backend, compile=settings.compile), each=shared)
    common = {"dtype": settings.compute_dtype, "t5": settings.t5_weights or None, "vqgan": settings.vqgan or None,
              "vocabulary": settings.vocabulary or None, "backend": where}  # fmt: skip
    if settings.workdir:
        return ITIT.from_run(settings.workdir, step=settings.step, averaged=WEIGHTS[settings.weights], **common)
    if settings.step is not None or settings.weights != "auto":
        raise ValueError("--step and --weights are for --workdir: an export holds one set of weights")
    return ITIT.from_pretrained(settings.model, **common)


# ---------------------------------------------------------------------------------------------- exports


class Export:
    """One export: which batches are to be made here, and whether all are there.

    Args:
      output: folder.
      count: samples in all.
      settings: JSON values; an export that goes on must have the same.
    """

    def __init__(self, model, output, count, batch_size, sharing, settings):
        sharing.check()
        if batch_size < 1:
            raise ValueError(f"--batch_size={batch_size}: must be at least 1")
        self.hosts, self.output, self._sharing = model.backend.hosts, output, sharing
        if self.hosts.count > 1 and sharing.num_hosts > 1:
            raise ValueError(f"--num_hosts={sharing.num_hosts}: the {self.hosts.count} hosts of XLA run together here")
        # Hosts whose devices are one mesh do all together, and the first one writes.
        self.writes = self.hosts.leads
        self.batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
        self._mine = [k for k in range(len(self.batches)) if k % sharing.num_hosts == sharing.host_index]
        self._settings = settings | identity(model) | {"batch_size": batch_size, "count": count}

    def _begin(self):
        made = any(name[0] != "." for place in FOLDERS for name in storage.list_dir(storage.join(self.output, place)))
        settle(storage.join(self.output, "settings.json"), self._settings, made=made or self._sharing.num_hosts > 1)

    def run(self, folder, names, make, unit):
        """Makes what is not there.

        Args:
          folder: in the output, where the files appear.
          names: of the files of batch k: k -> list.
          make: (k, places of the samples) -> list of as many functions, each of which writes one of the files to a
            binary file object.

        Returns:
          Whether all files of all hosts are there now.

        Raises ValueError where another process makes the same share of them, or `output` was begun with other settings.
        """
        share = f"{self._sharing.host_index}-of-{self._sharing.num_hosts}"
        with contextlib.ExitStack() as stack:
            lock = locks.hold(storage.join(self.output, f".{share}{locks.NAME}"), f"--output={self.output}")
            self.hosts.together(lambda: stack.enter_context(lock) if self.writes else None)
            self.hosts.together(lambda: self._begin() if self.writes else None)
            return self._run(folder, names, make, unit)

    def _run(self, folder, names, make, unit):
        place = storage.join(self.output, folder)
        storage.make_dirs(place)
        if self.writes:
            storage.remove_rests(place)
        there = set(storage.list_dir(place))
        todo = [k for k in self._mine if not there.issuperset(names(k))]
        todo = self.hosts.gather(todo)[0]
        total, left = sum(len(self.batches[k]) for k in self._mine), sum(len(self.batches[k]) for k in todo)
        with tqdm.tqdm(total=total, initial=total - left, desc=f"making {unit}", unit=f" {unit}") as bar:
            for k in todo:
                for name, write in zip(names(k), make(k, self.batches[k]), strict=True):
                    if self.writes:
                        with storage.writer(storage.join(place, name)) as file:
                            write(file)
                bar.update(len(self.batches[k]))
        there = set(storage.list_dir(place))
        whole = all(there.issuperset(names(k)) for k in range(len(self.batches)))
        return self.hosts.gather(whole)[0]  # the one that writes has written all of its own


def identity(model):
    """What makes two models give the same: JSON values."""
    return {"model": model.fingerprint, "device": model.backend.device.type, "dtype": model.record["compute_dtype"]}


def digest(value):
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def export_pictures(model, prompts, output, drawing, batch_size, sharing=Sharing(), num_shown=64):  # noqa: B008
    """Draws every `inputs.Prompt` into output/pictures/NUMBER.png.

    Whoever finds all of them there writes index.jsonl, {"index", "prompt", "file"} and, where known, "image_id" a line,
    and sheet.png of the first `num_shown`. Returns whether that was done.

    Raises ValueError, one line, as `Export` does.
    """
    if not prompts:
        raise ValueError("no prompts: give at least one text")
    for i, prompt in enumerate(prompts):
        text.check(prompt.text, f"prompt {i}")
    files = [f"{number:06d}.png" for number in range(len(prompts))]
    settings = {"prompts": digest(prompts)} | dataclasses.asdict(drawing)
    export = Export(model, output, len(prompts), batch_size, sharing, settings)

    def make(_, places):
        texts = [prompts[i].text for i in places]
        made = model.generate(
            texts, drawing.seed, batch_size=batch_size, progress=False, numbers=list(places), **decode_of(drawing)
        )
        return [lambda file, picture=picture: picture.save(file, "PNG") for picture in made]

    whole = export.run(PICTURES, lambda k: [files[i] for i in export.batches[k]], make, "pictures")
    if whole and export.writes:
        lines = [{"index": i, "prompt": prompt.text, "file": f"pictures/{files[i]}"}
                 | ({} if prompt.image_id is None else {"image_id": prompt.image_id})
                 for i, prompt in enumerate(prompts)]  # fmt: skip
        write_lines(storage.join(output, "index.jsonl"), lines)
        panels = [sheets.Panel(_pixels(storage.join(output, line["file"])), line["prompt"])
                  for line in lines[:num_shown]]  # fmt: skip
        write_sheet(storage.join(output, "sheet.png"), "prompts and the pictures made from them", panels)
    return whole


def export_captions(
    model, pictures, output, telling, batch_size, sharing=Sharing(), num_shown=64, damage=None  # noqa: B008
):  # fmt: skip
    """Describes every `inputs.Picture`; a file a batch in output/parts.

    Whoever finds all of them there writes captions.jsonl, {"image_id", "file", "caption", "score"} and perhaps
    "candidates" a line, captions.json, the results as COCO has them ([{"image_id", "caption"}]), and sheet.png of the
    first `num_shown`. Returns whether that was done.

    Pictures that cannot be read are left out up to the limit of `damage`, a Damage (without one, none may be), written
    down in their batch's file and in damaged.txt. Beyond it raises ValueError; all batches made so far stay.
    """
    damage = damage or Damage(0, "pictures")
    settings = {"pictures": digest([picture[:2] for picture in pictures])} | dataclasses.asdict(telling)
    export = Export(model, output, len(pictures), batch_size, sharing, settings)
    size, before = model.picture_size, damage.count
    made = [read_json(f"{output}/parts/{name}") for name in storage.list_dir(f"{output}/parts") if name[0] != "."]
    damage.count += sum("damaged" in line for lines in made for line in lines)

    def make(_, places):
        chosen = [pictures[i] for i in places]
        pixels = [_load(picture, size, damage) for picture in chosen]
        # In the place of a damaged one stands a black one: batches of other sizes would be compiled and rounded anew.
        filled = [Image.fromarray(np.zeros((size, size, 3), np.uint8) if isinstance(x, str) else x) for x in pixels]
        told = model.caption(filled, batch_size=batch_size, progress=False, candidates=True, **decode_of(telling))
        lines = [{"file": picture.name, "damaged": found} if isinstance(found, str)
                 else _caption_line(picture, ranked, telling.candidates)
                 for picture, found, ranked in zip(chosen, pixels, told, strict=True)]  # fmt: skip
        return [lambda file: file.write(json.dumps(lines).encode())]

    whole = export.run(PARTS, lambda k: [f"{k:06d}.json"], make, "captions")
    if whole and export.writes:
        lines = [line for k in range(len(export.batches)) for line in read_json(f"{output}/parts/{k:06d}.json")]
        lines = _without_damaged(lines, output, damage.limit - before)
        write_lines(storage.join(output, "captions.jsonl"), lines)
        results = [{"image_id": line["image_id"], "caption": line["caption"]} for line in lines]
        storage.write_bytes(storage.join(output, "captions.json"), json.dumps(results).encode())
        by_id = {picture.image_id: picture for picture in pictures}
        panels = [sheets.Panel(inputs.load(by_id[line["image_id"]], size), line["caption"])
                  for line in lines[:num_shown]]  # fmt: skip
        write_sheet(storage.join(output, "sheet.png"), "pictures and the captions made from them", panels)
    return whole


def _load(picture, size, damage):
    """uint8 [size, size, 3], or of a damaged one the cause."""
    try:
        return inputs.load(picture, size)
    except inputs.BadPicture as error:
        damage.add(error)
        return str(error)


def _without_damaged(lines, output, limit):
    """The lines of captions alone; of the others writes damaged.txt. Raises ValueError for more than `limit`: hosts
    that share an export count each their own. Raises it, too, where no caption is left."""
    bad = [line["damaged"] for line in lines if "damaged" in line]
    if len(bad) > limit:
        raise ValueError(f"{bad[0]} (damaged pictures in all: {len(bad)}, above --max_bad_records)")
    if bad:
        text = "".join(f"{cause}\n" for cause in bad)
        storage.write_bytes(storage.join(output, "damaged.txt"), text.encode("utf-8", "backslashreplace"))
    if len(bad) == len(lines):
        raise ValueError(f"no usable pictures: {len(bad)} are damaged")
    return [line for line in lines if "damaged" not in line]


def _caption_line(picture, ranked, candidates):
    line = {"image_id": picture.image_id, "file": picture.name, "caption": ranked[0][0], "score": ranked[0][1]}
    found = [{"caption": text, "score": score} for text, score in ranked]
    return line | ({"candidates": found} if candidates else {})


# ---------------------------------------------------------------------------------------------- files


def write_lines(path, values):
    """A JSON value a line."""
    storage.write_bytes(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode())


def read_json(path):
    """The value in a JSON file."""
    return json.loads(storage.read_bytes(path))


def write_sheet(path, title, panels):
    """A contact sheet of `sheets.Panel`s."""
    sheets.write(path, [sheets.Section(title, sheets.in_rows(panels, COLUMNS))])


def _pixels(path):
    with storage.open(path) as file:
        return np.asarray(Image.open(file))
