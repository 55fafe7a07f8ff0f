"""The commands from one's own data to a report, and the folder that they fill.

OUTPUT/settings.json              what it was begun with
OUTPUT/data, texts                shards; a share of the pairs is held out
OUTPUT/vocabulary.model, vqgan, ids
OUTPUT/speed.json                 seconds a step, where the length is given in minutes
OUTPUT/itit                       the run
OUTPUT/step_N                     samples and scores after N steps
OUTPUT/report.md
"""

import functools
import json

from itit import flagfiles, flags, storage
from itit.console import say
from tools.own import amounts, choices
from tools.own.steps import LOCK, Command

TRAINING = "launch/flagfiles/own.cfg"
SPLITS = {"paired": "data", "held_out": "data", "images": "data", "texts": "texts"}  # split -> folder of its shards
NUM_PROMPTS, NUM_TEST, NUM_SHOWN = 24, 200, 24  # of the held-out pairs: drawn, described, described in the picture
TIMED = 3  # steps
KEPT = ("image_size", "held_out", "num_text_tokens", "vocab_size")  # settings that all that was made depends on
# Flags of itit.train that are set here.
DERIVED = ("workdir", "vqgan", "vocabulary", "paired_data", "image_data", "text_data", "eval_data", "num_image_tokens",
           "codebook_size", "bos_id")  # fmt: skip


def config_of(settings, training):
    """The Config of a training with these flags, on data of every kind. Raises ValueError."""
    num_steps = settings.num_steps or flags.from_flagfile(TRAINING).optim.num_steps
    chosen, _ = choices.choose(dict.fromkeys(SPLITS, 1000), num_steps)
    own = {"num_steps": num_steps, "image_size": settings.image_size, "num_image_tokens": 64, **chosen}
    return flags.from_flagfile(TRAINING, [*(f"--{name}={value}" for name, value in own.items()), *training])


class Pipeline:
    """Everything between PICTURES, TEXTS and the report.

    Args:
      settings: of tools.start.
      pictures, texts: PICTURES, and TEXTS or "".
      training: further flags for itit.train, which win.

    Raises ValueError where PICTURES has two files of captions.
    """

    def __init__(self, settings, pictures, texts, training):
        self._settings, self._pictures, self._texts, self._training = settings, pictures, texts, training
        self._captions = settings.captions or amounts.find_captions(pictures)
        self._backend = (f"--backend={settings.backend}",) if settings.backend != "auto" else ()
        self.workdir = self.at("itit")

    def at(self, *names):
        """A path in the folder."""
        return storage.join(self._settings.output, *names)

    def begin(self):
        """Writes down what it is begun with, or compares it with what it was. Raises ValueError, one line."""
        s, path = self._settings, self.at("settings.json")
        now = {
            "the pictures": str(amounts.of_pictures(self._pictures, self._captions)),
            "the texts": amounts.of_texts(self._texts) if self._texts else "none",
            **{f"--{name}": getattr(s, name) for name in KEPT},
            "the flags of --tokenizer": " ".join(flagfiles.read(s.tokenizer)),
        }
        if storage.exists(path):
            for name, then in json.loads(storage.read_bytes(path)).items():
                if now[name] != then:
                    raise ValueError(f"{s.output}: {name}: was {then}, is now {now[name]}; name another --output, or "
                                     "remove this one to begin anew")  # fmt: skip
        elif set(storage.list_dir(s.output)) - {LOCK}:
            raise ValueError(f"--output={s.output}: holds something else; name another folder")
        else:
            storage.make_dirs(s.output)
            storage.write_bytes(path, json.dumps(now, indent=1).encode())
        named = f", by {self._captions}" if self._captions else ""
        return [
            f"{self._pictures}: {now['the pictures']}{named}",
            f"{self._texts or 'unpaired texts'}: {now['the texts']}",
        ]

    def steps(self):
        """Yields (title, Commands); a step, and a command, is asked for when those before it are done."""
        yield "Pictures and texts to shards", self._prepare()
        yield "Vocabulary", self._vocabulary()
        yield "Image tokenizer", self._tokenizer()
        yield "Pictures and texts to ids, once for all steps", self._ids()
        yield "Training", self._train()
        yield "Samples and scores of held-out pairs", self._look()
        yield "Report", self._report()

    LENGTH = 7  # of steps()

    def _command(self, module, *arguments, makes):
        return Command(module, arguments, functools.partial(storage.exists, self.at(makes)))

    # ------------------------------------------------------------------------------------------ data

    def _prepare(self):
        s, bad = self._settings, f"--max_bad_records={self._settings.max_bad_records}"
        given = [f"--input={self._pictures}", *([f"--captions={self._captions}"] if self._captions else [])]
        yield self._command("tools.prepare", "folder", *given, f"--output={self.at('data')}",
                            f"--short_side={s.image_size}", f"--held_out={s.held_out}", bad,
                            makes="data/dataset.json")  # fmt: skip
        if self._texts:
            yield self._command("tools.prepare", "text", f"--input={self._texts}", f"--output={self.at('texts')}", bad,
                                makes="texts/dataset.json")  # fmt: skip

    def shards(self):
        """Split -> what dataset.json says of it, of those that there are. Raises ValueError where no pair is left."""
        found = {}
        for folder in set(SPLITS.values()):
            path = self.at(folder, "dataset.json")
            found |= json.loads(storage.read_bytes(path))["splits"] if storage.exists(path) else {}
        for split in ("paired", "held_out"):
            if split not in found:
                raise ValueError(f"{self._pictures}: no picture with a caption is left that is {split}; damaged ones: "
                                 f"{self.at('data', 'damaged.txt')}")  # fmt: skip
        return {split: found[split] for split in SPLITS if split in found}

    def patterns(self, *splits, ids=False):
        """Patterns of the shards of those splits that there are, raw or as ids, for a flag."""
        folders = {split: "ids" if ids else SPLITS[split] for split in splits if split in self.shards()}
        return ",".join(f"{self.at(folder, split)}-*.tfrecord" for split, folder in folders.items())

    def _vocabulary(self):
        size = [f"--vocab_size={self._settings.vocab_size}"] if self._settings.vocab_size else []
        yield self._command("tools.train_sentencepiece", f"--input={self.patterns('paired', 'texts')}", *size,
                            f"--output={self.at('vocabulary.model')}", makes="vocabulary.model")  # fmt: skip

    def _tokenizer(self):
        held_out = self.patterns("held_out")
        yield self._command("tools.train_vqgan", f"--flagfile={self._settings.tokenizer}",
                            f"--image_size={self._settings.image_size}", f"--data={self.patterns('paired', 'images')}",
                            f"--eval_data={held_out}", f"--output={self.at('vqgan')}", *self._backend,
                            makes="vqgan/reconstructions.png")  # fmt: skip
        yield self._command("tools.reconstruct", f"--vqgan={self.at('vqgan')}", f"--input={held_out}",
                            f"--num_pictures={NUM_TEST}", f"--output={self.at('reconstructed')}",
                            makes="reconstructed/report.json")  # fmt: skip

    def _ids(self):
        for split, found in self.shards().items():
            count = len(found["shards"])
            yield self._command("tools.tokenize", f"--input={self.patterns(split)}",
                                f"--output={self.at('ids', split)}", f"--vqgan={self.at('vqgan')}",
                                f"--vocabulary={self.at('vocabulary.model')}",
                                f"--num_text_tokens={self._settings.num_text_tokens}", *self._backend,
                                makes=f"ids/{split}-{count - 1:05d}-of-{count:05d}.tfrecord")  # fmt: skip

    # ------------------------------------------------------------------------------------------ training

    def _flags(self, num_steps):
        """All flags of itit.train but where, and what a person is to know of them."""
        counts = {split: self.shards().get(split, {"records": 0})["records"] for split in SPLITS}
        chosen, said = choices.choose(counts, num_steps)
        data = {"paired_data": "paired", "image_data": "images", "text_data": "texts", "eval_data": "held_out"}
        given = {name: self.patterns(split, ids=True) for name, split in data.items()}
        values = {"vqgan": self.at("vqgan"), "vocabulary": self.at("vocabulary.model"), **given,
                  "num_steps": num_steps, **chosen}  # fmt: skip
        own = [f"--{name}={value}" for name, value in values.items() if value != ""]
        return [f"--flagfile={TRAINING}", *own, *self._backend, *self._training], said

    def _train(self):
        num_steps = config_of(self._settings, self._training).optim.num_steps
        if self._settings.minutes:
            timed, _ = self._flags(num_steps)
            yield self._command("tools.bench", *timed, f"--steps={TIMED}", f"--json={self.at('speed.json')}",
                                makes="speed.json")  # fmt: skip
            (speed,) = json.loads(storage.read_bytes(self.at("speed.json"))).values()
            num_steps = max(1, int(self._settings.minutes * 60 / speed["seconds"]))
        given, said = self._flags(num_steps)
        if self.step() < num_steps:
            say("\n".join(said))
        yield Command("itit.train", (*given, f"--workdir={self.workdir}"), lambda: self.step() >= num_steps)

    def step(self):
        """Of the newest checkpoint, as checkpoint/store.py lays them out; 0 where there is none."""
        folder = storage.join(self.workdir, "checkpoints")
        whole = [name for name in storage.list_dir(folder) if storage.exists(storage.join(folder, name, "commit.json"))]
        return max((int(name.removeprefix("step_")) for name in whole), default=0)

    # ------------------------------------------------------------------------------------------ what came of it

    def _look(self):
        at, held_out = f"step_{self.step()}", self.patterns("held_out")
        common = [f"--workdir={self.workdir}", f"--num_shown={NUM_SHOWN}", *self._backend]
        yield self._command("tools.generate", *common, f"--prompts={held_out}", f"--num_prompts={NUM_PROMPTS}",
                            f"--output={self.at(at, 'drawn')}", makes=f"{at}/drawn/sheet.png")  # fmt: skip
        yield self._command("tools.caption", *common, f"--pictures={held_out}", f"--num_pictures={NUM_TEST}",
                            f"--output={self.at(at, 'told')}", makes=f"{at}/told/sheet.png")  # fmt: skip
        yield self._command("tools.score_captions", f"--references={held_out}",
                            f"--results={self.at(at, 'told', 'captions.json')}", f"--json={self.at(at, 'scores.json')}",
                            makes=f"{at}/scores.json")  # fmt: skip

    def _report(self):
        at = f"step_{self.step()}"
        yield self._command("tools.report_own", f"--folder={self._settings.output}", f"--step={self.step()}",
                            makes=f"{at}/report.json")  # fmt: skip
