"""The commands of the documents, as a reader types them: each is run, or is in a list of those that cannot be."""

import contextlib
import gzip
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from itit import storage
from itit.checkpoint import store
from itit.data import scenes
from tests.helpers import commands, finished_run, foreign_weights
from tests.helpers.common import ROOT
from tests.helpers.flaky_storage import BUCKET, gcs  # noqa: F401 (a fixture)
from tests.helpers.public_vqgans import taming
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tests.test_house import tracked_files

transformers = pytest.importorskip("transformers")

# How a command begins -> why it is not run here.
NOT_RUN = {
    "bash launch/quickstart.sh": "half an hour",
    "bash launch/own.sh": "makes .venv; what it starts is in tools/own/test_start.py",
    "bash tests/run.sh": "is what runs",
    "python -m itit.train --flagfile=launch/flagfiles/table2/row14.cfg": "a pod; core/test_flagfiles.py parses it",
    "tensorboard ": "serves until it is stopped",
    "python -m tools.score_fid": "weights that are not at hand; with others in tools/scoring/test_score_fid.py",
}
# Module -> what makes its command small.
SMALLER = {
    "tools.train_sentencepiece": ["--vocab_size=60"],
    "tools.train_vqgan": ["--num_steps=2", "--channels=8", "--channel_multipliers=1,1,1", "--latent_dim=4"],
    "itit.train": ["--num_steps=2", "--num_decode_steps=2", "--lr_warmup_steps=1", "--eval_every=0", "--backend=cpu"],
    "tools.convert_vqgan": ["--image_size=32"],
    "tools.prepare": ["--num_workers=1"],
    "tools.inspect": ["--num_workers=1"],
}
WALKED = ("launch/RUNNING.md", "README.md")
WALKED_ON_GS = "itit/data/README.md"
NUM_PAIRS = 40


def documents():
    return [path for path in tracked_files() if path.suffix == ".md"]


def of_shell(path):
    """The command lines of a document's blocks for the shell."""
    found = [block for language in ("sh", "bash") for block in commands.blocks(ROOT / path, language)]
    lines = [line.strip() for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_only_these_documents_have_commands_in_blocks():
    """A new one is walked here, or where its scripts are tested, as launch/TPU.md is."""
    assert {str(path) for path in documents() if of_shell(path)} == {*WALKED, WALKED_ON_GS, "launch/TPU.md"}


def test_every_reason_is_needed():
    lines = [line for path in WALKED for line in of_shell(path)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


def test_modules_and_files_that_documents_name_are_there():
    """`python -m NAME` and links to files, wherever they stand in a text."""
    for path in documents():
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"python -m ((?:itit|tools)[\w.]*\w)", text):
            known = name == "tools.NAME" or (ROOT / f"{name.replace('.', '/')}.py").is_file()
            assert known, f"{path}: {name}"
        for name in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / path).parent / name).exists(), f"{path}: {name}"


def draw(rng):
    scene = scenes.sample(rng, ("seen",))
    return Image.fromarray(scenes.render(scene, rng)), scenes.describe(scene, rng)


@pytest.fixture
def folder(tmp_path, fresh_seed):  # noqa: F811
    """What the documents take for granted: somebody's data and downloads, and a quickstart that is done."""
    rng = np.random.default_rng()
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    for name in ("pictures", "texts", "val2014", "downloads/t5-v1_1-small", "downloads/vqgan-f16-8192-laion",
                 "runs/quickstart/scenes", "runs/captions", "made"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    drawn = [draw(rng) for _ in range(NUM_PAIRS)]
    for i, (picture, text) in enumerate(drawn):
        picture.resize((80, 96)).save(tmp_path / "pictures" / f"{i}.jpg")
        if i % 4:
            (tmp_path / "pictures" / f"{i}.txt").write_text(text)
    texts = "\n".join(draw(rng)[1] for _ in range(NUM_PAIRS))
    (tmp_path / "texts" / "some.txt.gz").write_bytes(gzip.compress(texts.encode()))
    sizes = dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=128)
    config = transformers.T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **sizes)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "downloads" / "t5-v1_1-small")
    foreign_weights.write(tmp_path / "downloads" / "vqgan-f16-8192-laion",
                          taming(widths=(32, 32, 64), num_blocks=1, attention=(2,)))  # fmt: skip
    finished_run.of_scenes(tmp_path / "made")
    shutil.copy(tmp_path / "made" / "words.model", tmp_path / "downloads" / "t5-v1_1-small" / "spiece.model")
    (tmp_path / "runs" / "quickstart" / "scenes" / "never-00000.tfrecord").symlink_to(
        tmp_path / "made" / "test.tfrecord"
    )
    for name, made in {"itit": "run", "vqgan": "vqgan", "vocabulary.model": "words.model"}.items():
        (tmp_path / "runs" / "quickstart" / name).symlink_to(tmp_path / "made" / made)
    (tmp_path / "runs" / "quickstart" / "report.json").write_text(json.dumps({"caption_score": 0.5, "step": 7}))
    references = {i: drawn[i][1] for i in range(1, 9)}
    names = [f"COCO_val2014_{i:012d}.jpg" for i in references]
    for i, name in zip(references, names, strict=True):
        drawn[i][0].save(tmp_path / "val2014" / name)
    images = [{"id": i, "file_name": name} for i, name in zip(references, names, strict=True)]
    entries = [{"id": i, "image_id": i, "caption": text} for i, text in references.items()]
    captions = {"images": images, "annotations": entries}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    told = [{"image_id": i, "caption": text} for i, text in references.items()]
    (tmp_path / "runs" / "captions" / "captions.json").write_text(json.dumps(told))
    (tmp_path / "karpathy_test_images.txt").write_text("".join(f"val2014/{n} {i}\n" for i, n in enumerate(names, 1)))
    return tmp_path


def walk(path, folder, environment=None):
    """Types the blocks of a document. Returns how many commands were run, and what the last one printed."""
    ran, output = 0, ""
    for block in commands.blocks(ROOT / path, "sh"):
        for words in commands.typed(block.replace("MY_BUCKET", BUCKET), folder):
            line = " ".join(words)
            if any(line.startswith(start) for start in NOT_RUN):
                continue
            assert words[:2] == ["python", "-m"], f"not run, and no reason in NOT_RUN: {line}"
            status, output = commands.run([*words[1:], *SMALLER.get(words[2], [])], folder, environment)
            assert status == 0, f"{line}\n{output[-3000:]}"
            ran += 1
    return ran, output


def test_word_by_word(folder, monkeypatch):
    assert sum(walk(path, folder)[0] for path in WALKED) >= 10
    monkeypatch.chdir(folder)
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for block in (block for path in WALKED for block in commands.blocks(ROOT / path, "python")):
            exec(compile(block, "a document", "exec"), names)  # noqa: S102 (our own)
    assert said.getvalue()


def test_word_by_word_on_gs(folder, gcs):  # noqa: F811
    """With the bucket of a stand-in: somebody's parquet files, as Hugging Face writes them."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng = np.random.default_rng()
    for number in range(3):
        rows, data = [], io.BytesIO()
        for picture, text in (draw(rng) for _ in range(NUM_PAIRS)):
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            rows.append({"image": {"bytes": encoded.getvalue(), "path": None}, "caption": text})
        parquet.write_table(pyarrow.Table.from_pylist(rows), data)
        storage.write_bytes(f"gs://{BUCKET}/raw/{number}.parquet", data.getvalue())
    ran, output = walk(WALKED_ON_GS, folder, gcs.environment)
    assert ran == 4 and "step 2/2" in output, output
    assert store.latest_step(f"gs://{BUCKET}/runs/first") == 2
