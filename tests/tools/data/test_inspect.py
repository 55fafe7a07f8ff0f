"""Every kind of damage is named with its place; what is sound is counted, by hand and by the tool alike."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from itit import sheets
from itit.data import records, shard_index
from tests.helpers.common import ROOT, shared_data
from tools import inspect
from tools.data import inspection, preparing
from tools.data.sources.folder import Folder


def picture(width, height, colour=None):
    rng, data = np.random.default_rng(), io.BytesIO()
    colour = colour or tuple(rng.integers(0, 256, 3).tolist())
    Image.new("RGB", (width, height), colour).save(data, "PNG")
    return data.getvalue()


def write(path, examples, index=True):
    with records.RecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example if isinstance(example, bytes) else records.encode_example(example))
    if index:
        shard_index.write(str(path), writer.spans)
    return [offset for offset, _ in writer.spans]


def examine(path, **values):
    job = dict(expected=None, vocabulary="", max_image_pixels=10**6, num_tiles=0) | values
    return inspection.examine(inspection.Job(str(path), **job))


def test_sound_records_are_counted(tmp_path):
    rng, path = np.random.default_rng(), tmp_path / "a.tfrecord"
    sizes = rng.integers(10, 40, (20, 2)).tolist()
    texts = ["x" * int(length) for length in rng.integers(1, 9, 20)]
    offsets = write(path, [{"key": str(n), "image": picture(*size), "text": text}
                           for n, (size, text) in enumerate(zip(sizes, texts, strict=True))])  # fmt: skip
    report = examine(path, num_tiles=4)
    assert report.damaged == [] and report.offsets == offsets and report.features == ("image", "key", "text")
    assert report.num_bytes == path.stat().st_size and len(set(report.hashes)) == 20
    assert sorted(report.sizes.elements()) == sorted(map(tuple, sizes))
    assert sorted(report.lengths.elements()) == sorted(map(len, texts))
    widest = max(range(20), key=lambda n: sizes[n][0] * sizes[n][1])
    assert report.extremes["most pixels"][0] == np.prod(sizes[widest])
    assert [text for _, text in report.tiles] == [texts[n] for n in (0, 5, 10, 15)]
    for (data, _), n in zip(report.tiles, (0, 5, 10, 15), strict=True):
        found, side = Image.open(io.BytesIO(data)).size, max(sizes[n])
        assert max(found) == sheets.SIDE and found == pytest.approx([sheets.SIDE * x / side for x in sizes[n]], abs=0.6)


def test_every_damage_is_named_with_its_place(tmp_path):
    good = {"key": "0", "image": picture(20, 20), "text": "a text"}
    bad = {
        "holds image, key, must hold image, key, text": {"key": "1", "image": good["image"]},
        "not UTF-8|utf-8": good | {"key": "2", "text": b"\xff"},
        "empty text": good | {"key": "3", "text": " "},
        "not a picture": good | {"key": "4", "image": b"x" * 40},
        "does not decode": good | {"key": "5", "image": picture(90, 90)[:-40]},
        "above --max_image_pixels": good | {"key": "6", "image": picture(1200, 900)},
        "must be one string": good | {"key": [1, 2]},
        "not a tf.train.Example": b"\xff" * 30,
        "checksum of the payload": good | {"key": "7"},
    }
    path = tmp_path / "a.tfrecord"
    offsets = write(path, [good, *bad.values(), good | {"key": "8"}])
    data = bytearray(path.read_bytes())
    data[offsets[9] + 30] ^= 1
    path.write_bytes(data)
    report = examine(path)
    assert report.offsets == [offsets[0], offsets[-1]] and len(report.damaged) == len(bad)
    for line, offset, causes in zip(report.damaged, offsets[1:], bad, strict=False):
        assert line.startswith(f"{path}@{offset}: ") and any(cause in line for cause in causes.split("|")), line


def test_ids_are_checked(tmp_path):
    good = {"key": "0", "image_ids": [3, 4], "text_ids": [5, 1, 0]}
    bad = [good | {"image_ids": [3, -1]}, good | {"image_ids": [3]}, good | {"text_ids": [5, 6, 7]},
           good | {"text_ids": [5, 1, 1]}, good | {"image_ids": np.array([0.5, 1])}]  # fmt: skip
    offsets = write(tmp_path / "a.tfrecord", [good, *bad])
    report = examine(tmp_path / "a.tfrecord")
    assert report.offsets == offsets[:1] and len(report.damaged) == len(bad)


def test_framing_and_index_are_checked(tmp_path):
    path = tmp_path / "a.tfrecord"
    offsets = write(path, [{"key": str(n), "text": "t"} for n in range(5)], index=False)
    assert examine(path).damaged == []
    lengths = records.index(str(path))[:, 1] + [1, -1, 0, 0, 0]  # of the right sum, but not of this shard
    shard_index.write(str(path), np.stack([lengths, lengths], 1))
    (line,) = examine(path).damaged
    assert line.startswith(f"{tmp_path}/.a.tfrecord.index@0: its offsets are not those")
    (tmp_path / ".a.tfrecord.index").unlink()
    path.write_bytes(path.read_bytes()[:-3])
    report = examine(path)
    assert len(report.offsets) == 4 and report.damaged == [f"{path}@{offsets[4]}: the file ends inside this record"]


def prepared(tmp_path, count=12):
    (tmp_path / "in").mkdir()
    for n in range(count):
        (tmp_path / "in" / f"{n:02d}.png").write_bytes(picture(30, 20 + n))
        (tmp_path / "in" / f"{n:02d}.txt").write_text(f"text {n}")
    settings = preparing.Settings(output=str(tmp_path / "out"), short_side=16, num_workers=1, shard_bytes=3000)
    preparing.run("folder", Folder(str(tmp_path / "in")), settings)
    return tmp_path / "out"


def run(dataset, **values):
    options = dict(grid="", vocabulary="", max_image_pixels=10**6, num_workers=1)
    inspect.inspect(str(dataset), **options | values)


def test_a_prepared_dataset_is_sound_and_drawn(tmp_path, capsys):
    output = prepared(tmp_path)
    run(output)
    printed = capsys.readouterr().out
    assert "paired: 12 sound records" in printed and "nothing is damaged" in printed
    assert "short side of pictures in pixels: from 16 to 16" in printed
    assert Image.open(output / "inspect.png").size[0] > 6 * sheets.SIDE
    run(f"{output}/paired-*", grid=str(tmp_path / "grid.png"))
    assert "image and key and text: 12 sound records" in capsys.readouterr().out and (tmp_path / "grid.png").exists()


def test_what_differs_from_the_description_is_damage(tmp_path, capsys):
    output = prepared(tmp_path)
    described = json.loads((output / "dataset.json").read_text())
    shards = described["splits"]["paired"]["shards"]
    name, last = shards[0]["name"], shards[-1]["name"]
    (output / name).write_bytes((output / last).read_bytes())  # a whole shard in the place of another
    (output / f".{name}.index").write_bytes((output / f".{last}.index").read_bytes())
    with pytest.raises(ValueError, match="damaged, the first: .*must be .* by dataset.json"):
        run(output)
    printed = capsys.readouterr().out
    assert "fingerprint" in printed and "its id was there before" in printed
    (output / name).unlink()
    with pytest.raises(FileNotFoundError):
        run(output)


def test_texts_are_measured_in_pieces(tmp_path):
    vocabulary = str(shared_data() / "t5" / "spiece.model")
    write(tmp_path / "a.tfrecord", [{"key": "0", "text": "A man riding a wave on top of a surfboard."}])
    assert dict(examine(tmp_path / "a.tfrecord", vocabulary=vocabulary).lengths) == {15: 1}


def test_the_command_ends_with_2_where_anything_is_damaged(tmp_path):
    write(tmp_path / "a.tfrecord", [{"key": "0", "text": "t"}, {"key": "0", "text": "t"}])
    command = [sys.executable, "-m", "tools.inspect", f"{tmp_path}/*.tfrecord", "--num_workers=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "error: " in done.stderr and "its id was there before" in done.stderr
    assert "key and text: 2 sound records in 1 shard," in done.stdout
    with pytest.raises(ValueError, match="name a folder"):
        run("")
    with pytest.raises(ValueError, match="no file matches"):
        run(tmp_path / "none")


@pytest.mark.parametrize("tool", ["prepare", "inspect"])
def test_a_tool_that_is_run_as_a_script_says_how_to_run_it(tool, tmp_path):
    """As a script it would find tools/inspect.py in the place of Python's own."""
    done = subprocess.run([sys.executable, ROOT / "tools" / f"{tool}.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "run it from the root of the repository as a module" in done.stderr
