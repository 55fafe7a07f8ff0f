"""The data of a study: which files a run reads, the commands that make them, and prefixes of draws.

    DATA/                          one folder for each kind of ids (image tokenizer, vocabulary)
      vocabulary.model, vqgan/     from 2,000 unpaired pictures and texts of data_seed
      ids/paired-3-10000/          10,000 pairs drawn by seed 3, as ids
      ids/paired-3-300.tfrecord    the first 300 of them
      ids/test-0-500/              the three test splits

Each file is the same whoever makes it, so that studies share them.
"""

import dataclasses

from itit import storage
from itit.data import records, scenes, shard_index
from tools.studies.experiments import digest, read_plain

TOKENIZER_SCENES = 2000  # pictures and texts that the tokenizers are made from
SHARD = "-00000-of-00001.tfrecord"  # what scene_ids ends its names in
SPLIT_OF = {"pairs": "paired", "images": "images", "texts": "texts", "extra": "extra"}


@dataclasses.dataclass(frozen=True)
class Command:
    """`python -m MODULE ARGUMENTS`, which makes `path`; once that is there, the command is done."""

    module: str
    arguments: tuple
    path: str


class Data:
    """The data of one study, below a folder.

    Args:
      study: `experiments.Study`.
      folder: of all data.
    """

    def __init__(self, study, folder):
        self._study, self._root = study, folder

    def folder(self, experiment):
        """Where the ids of an experiment lie: one folder for each kind of ids."""
        model = experiment.config.model
        kind = [read_plain(self._study.vqgan), self._study.data_seed, model.num_text_tokens, model.bos_id]
        return storage.join(self._root, digest(kind))

    def arguments(self, experiment, seed):
        """The flags of training that name the data of a run."""
        folder, ids = self.folder(experiment), {}
        for name, _, _, path in self._prefixes(experiment, seed):
            ids[name] = path
        ids |= {name: ids["pairs"] for name, amount in experiment.values.items() if amount == "pairs"}
        paired = ",".join(ids[name] for name in ("pairs", "extra") if name in ids)
        found = {"vocabulary": f"{folder}/vocabulary.model", "vqgan": f"{folder}/vqgan",
                 "eval_data": f"{self.tests(experiment)}/{self._study.eval}-*.tfrecord",
                 "paired_data": paired, "image_data": ids.get("images"), "text_data": ids.get("texts")}  # fmt: skip
        return [f"--{name}={path}" for name, path in found.items() if path]

    def tests(self, experiment):
        """The folder of the test splits."""
        return f"{self.folder(experiment)}/ids/test-{self._study.data_seed}-{self._study.test}"

    def commands(self, runs):
        """What is to be called before `runs`, in this order; what is there already is left out."""
        found = {}
        for experiment, _ in runs:
            for command in (*self._tokenizers(experiment), self._test_ids(experiment)):
                found.setdefault(command.path, command)
        for (folder, split, seed, share), count in self._draws(runs).items():
            path = _draw_path(folder, split, seed, share, count)
            arguments = (f"--splits={split}:{count}", f"--seed={seed}", f"--wrong_captions={share}")
            experiment = next(e for e, _ in runs if self.folder(e) == folder)
            found[path] = self._ids(experiment, path, arguments, split)
        return [command for command in found.values() if not storage.exists(command.path)]

    def cut(self, runs):
        """Writes the prefixes that `runs` read, from the draws that `commands` have made."""
        draws = self._draws(runs)
        for experiment, seed in runs:
            for _, key, count, path in self._prefixes(experiment, seed):
                if not storage.exists(path):
                    write_prefix(f"{_draw_path(*key, draws[key])}/{key[1]}{SHARD}", count, path)

    def _draws(self, runs):
        """(folder, split, seed, share of wrong captions) -> the most records that a run of all reads."""
        found = {}
        for experiment, seed in runs:
            for _, key, count, path in self._prefixes(experiment, seed):
                if not storage.exists(path):
                    found[key] = max(found.get(key, 0), count)
        return found

    def _prefixes(self, experiment, seed):
        """Yields (amount, key of the draw, records, path) of what a run reads."""
        for name, split in SPLIT_OF.items():
            count = experiment.values.get(name, 0)
            if count and count != "pairs":
                share = experiment.values["wrong_captions"] if name == "extra" else 0.0
                key = self.folder(experiment), split, seed if name == "pairs" else self._study.data_seed, share
                yield name, key, count, _draw_path(*key, count) + ".tfrecord"

    def _tokenizers(self, experiment):
        folder, seed = self.folder(experiment), self._study.data_seed
        scenes_folder = f"{folder}/scenes"
        counts = ("--num_pairs=0", f"--num_images={TOKENIZER_SCENES}", f"--num_texts={TOKENIZER_SCENES}")
        yield Command("tools.make_scenes", (*counts, "--num_test=0", f"--seed={seed}", f"--output={scenes_folder}"),
                      scenes_folder)  # fmt: skip
        path = f"{folder}/vocabulary.model"
        arguments = (f"--input={scenes_folder}/texts-*.tfrecord", f"--vocab_size={experiment.config.model.bos_id}")
        yield Command("tools.train_sentencepiece", (*arguments, f"--output={path}"), path)
        arguments = (f"--flagfile={self._study.vqgan}", f"--data={scenes_folder}/images-*.tfrecord")
        yield Command(
            "tools.train_vqgan", (*arguments, f"--output={folder}/vqgan"), f"{folder}/vqgan/model.safetensors"
        )

    def _test_ids(self, experiment):
        splits = ",".join(f"{split}:{self._study.test}" for split in scenes.GROUPS)
        path = self.tests(experiment)
        return self._ids(experiment, path, (f"--splits={splits}", f"--seed={self._study.data_seed}"), scenes.GROUPS[-1])

    def _ids(self, experiment, path, arguments, last):
        folder, length = self.folder(experiment), experiment.config.model.num_text_tokens
        shared = (f"--vqgan={folder}/vqgan", f"--vocabulary={folder}/vocabulary.model", f"--num_text_tokens={length}")
        return Command("tools.scene_ids", (*arguments, *shared, f"--output={path}"), f"{path}/{last}{SHARD}")


def _draw_path(folder, split, seed, share, count):
    return f"{folder}/ids/{split}-{seed}{f'-wrong{share:g}' if share else ''}-{count}"


def write_prefix(source, count, path):
    """Writes the first `count` records of a shard, with their index. Raises ValueError where it has fewer."""
    spans = records.index(source)[:count]
    if len(spans) < count:
        raise ValueError(f"{source}: {len(spans)} records, {count} are wanted")
    with records.RecordWriter(path) as writer:
        for offset, length in spans.tolist():
            writer.write(records.read(source, offset, length))
    shard_index.write(path, writer.spans)
