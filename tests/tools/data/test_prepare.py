"""The command: every source by its name, through its flags, and mistakes in one line."""

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image

from itit import flags as flags_lib
from itit.data import records
from tests.helpers.common import ROOT, shared_data
from tools.data import preparing
from tools.data.sources import SOURCES, source_of

with contextlib.suppress(ModuleNotFoundError):
    import pyarrow.parquet
with contextlib.suppress(ModuleNotFoundError):
    import datasets


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "tools.prepare", *arguments], cwd=ROOT, capture_output=True, text=True)


def picture():
    data = io.BytesIO()
    pixels = np.random.default_rng().integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def write_inputs(root):
    """The same two pairs in the form of every source; arguments of each."""
    data = {name: picture() for name in ("1.jpg", "2.jpg")}
    (root / "in").mkdir()
    for name, value in data.items():
        (root / "in" / name).write_bytes(value)
        (root / "in" / name).with_suffix(".txt").write_text(f"text of {name}")
    rows = [{"image": name, "caption": f"text of {name}"} for name in data]
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "a.csv").write_text("caption,image\n" + "".join(f"{row['caption']},{row['image']}\n" for row in rows))
    (root / "a.tsv").write_text("".join(f"{row['caption']}\thttp://x.y/{row['image']}\n" for row in rows))
    (root / "coco.json").write_text(json.dumps({
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2)],
        "annotations": [{"image_id": n, "caption": f"text of {n}.jpg"} for n in (1, 2)],
    }))  # fmt: skip
    with tarfile.open(root / "a.tar", "w") as tar:
        for path in sorted((root / "in").iterdir()):
            tar.add(path, path.name)
    inside, optional = f"--image_root={root}/in", {}
    if importlib.util.find_spec("pyarrow"):
        table = pyarrow.table({"caption": [row["caption"] for row in rows], "image": list(data.values())})
        pyarrow.parquet.write_table(table, root / "a.parquet")
        optional["parquet"] = [f"--input={root}/a.parquet"]
    if importlib.util.find_spec("datasets"):
        datasets.Dataset(table).save_to_disk(str(root / "set"))
        optional["hf"] = [f"--input={root}/set"]
    return data, optional | {
        "coco": [f"--captions={root}/coco.json", f"--images={root}/in"],
        "folder": [f"--input={root}/in"],
        "jsonl": [f"--input={root}/a.jsonl", inside],
        "csv": [f"--input={root}/a.csv", inside],
        "tsv": [f"--input={root}/a.tsv", inside, "--columns=caption,url", "--image_column=url", "--url_names=basename"],
        "webdataset": [f"--input={root}/a.tar"],
        "text": [f"--input={root}/in/*.txt"],
    }


def test_every_source_gives_the_same_pairs(tmp_path, monkeypatch):
    data, arguments = write_inputs(tmp_path)
    assert set(SOURCES) - set(arguments) <= {"parquet", "hf"}, "those that need more libraries"
    for name, given in arguments.items():
        # In process, with flags of its own: seven interpreters would take long.
        values = flags_lib.flags.FlagValues()
        for part in (preparing.Settings(), source_of(name)()):
            flags_lib.define(part, values)
        values(["prepare", f"--output={tmp_path}/{name}", "--image_quality=0", "--num_workers=1", *given])
        settings, source = (flags_lib.from_flags(part, values) for part in (preparing.Settings(), source_of(name)()))
        found = preparing.run(name, source, settings)
        split = "texts" if name == "text" else "paired"
        path = str(tmp_path / name / f"{split}-00000.tfrecord")
        rows = [records.decode_example(records.read(path, *span)) for span in records.index(path).tolist()]
        assert [row["text"] for row in rows] == [[b"text of 1.jpg"], [b"text of 2.jpg"]], name
        assert name == "text" or [row["image"] for row in rows] == [[value] for value in data.values()], name
        assert found["settings"]["source"] == name and list(found["splits"]) == [split]


def test_the_command_and_its_mistakes_in_one_line(tmp_path):
    _, arguments = write_inputs(tmp_path)
    done = command("text", f"--output={tmp_path}/out", *arguments["text"], "--num_workers=1")
    assert done.returncode == 0 and "texts: 2 records of text, 0.0 MB in 1 shard" in done.stdout, done.stderr
    for given, message in (
        (["floder", "--input=x"], "source 'floder': choose one of coco, .*did you mean 'folder'"),
        (["text", "--output=x"], "--input is empty"),
        (["tsv", "--output=x", "--url_names=md6"], "did you mean 'md5'"),
    ):  # fmt: skip
        done = command(*given)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert re.search(message, done.stderr), done.stderr


def test_real_coco_photos_of_any_mode(tmp_path):
    data = shared_data() / "coco"
    pictures = sorted((data / "images").iterdir())[::12]
    listed = tmp_path / "list"
    listed.write_text("".join(f"train2017/{path.name} 0\n" for path in pictures))
    source = source_of("coco")(str(data / "captions.json"), str(data / "images"), image_list=str(listed))
    settings = preparing.Settings(output=str(tmp_path / "out"), short_side=32, num_workers=1)
    found = preparing.run("coco", source, settings)
    captions = json.loads((data / "captions.json").read_text())
    ids = {image["file_name"]: image["id"] for image in captions["images"]}
    wanted = {ids[path.name] for path in pictures}
    assert found["damaged"] == 0 and found["splits"]["paired"]["records"] == sum(
        annotation["image_id"] in wanted for annotation in captions["annotations"]
    )
