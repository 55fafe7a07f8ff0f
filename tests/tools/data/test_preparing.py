"""A whole preparation: what TensorFlow reads of it, kills and restarts, damage, and what is refused."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from itit import storage
from itit.data import records, shard_index
from tests.core.test_storage import root  # noqa: F401 (a fixture)
from tests.helpers.common import ROOT
from tests.helpers.flaky_storage import BUCKET, gcs  # noqa: F401 (a fixture)
from tools.data import listing, preparing, shard_writer, splitting
from tools.data.preparing import Settings
from tools.data.sources.folder import Folder
from tools.data.sources.table import Jsonl
from tools.data.sources.text import Text
from tools.spread import distribution
from tools.spread.distribution import Distribution


def write_folder(place, count, texts=True):
    """Pictures of any size with a text of their own. Returns their names."""
    place.mkdir()
    rng, names = np.random.default_rng(), [f"{n:03d}.png" for n in range(count)]
    for name in names:
        pixels = rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / name)
        if texts:
            (place / name).with_suffix(".txt").write_text(f"the text of {name}")
    return names


def settings_of(output, **values):
    return Settings(**dict(output=str(output), short_side=16, num_workers=1, shard_bytes=6000) | values)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(folder, split):
    found = []
    for path in sorted(map(str, folder.glob(f"{split}-*.tfrecord"))):
        found += [records.decode_example(records.read(path, *span)) for span in records.index(path).tolist()]
    return found


def keys(folder, split):
    return [example["key"][0].decode() for example in read(folder, split)]


def test_tensorflow_reads_what_the_description_says(tmp_path):
    tf = pytest.importorskip("tensorflow")
    names = write_folder(tmp_path / "in", 30)
    found = preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out"))
    assert found == json.loads((tmp_path / "out" / "dataset.json").read_text()) and set(found["splits"]) == {"paired"}
    paired = found["splits"]["paired"]
    paths = [str(tmp_path / "out" / shard["name"]) for shard in paired["shards"]]
    assert len(paths) > 2 and [path.name for path in sorted((tmp_path / "out").glob("*.tfrecord"))] == [
        shard["name"] for shard in paired["shards"]
    ]
    assert paired["bytes"] == sum(os.path.getsize(path) for path in paths) and paired["records"] == 30
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in paired["schema"]}
    rows = [tf.io.parse_single_example(row, features) for row in tf.data.TFRecordDataset(paths)]
    assert [row["key"].numpy().decode() for row in rows] == names
    for row, name in zip(rows, names, strict=True):
        assert row["text"].numpy().decode() == f"the text of {name}"
        original, stored = Image.open(tmp_path / "in" / name), tf.io.decode_jpeg(row["image"]).numpy()
        scale = 16 / min(original.size)
        assert stored.shape == (*(round(edge * scale) for edge in original.size[::-1]), 3)
    for path in paths:
        np.testing.assert_array_equal(shard_index.read(path), records.index(path))


@pytest.mark.parametrize("halves, sample", [(True, 0), (True, 12), (False, 12)])
def test_no_pair_is_in_both_halves(tmp_path, halves, sample):
    names, seed = write_folder(tmp_path / "in", 60), int(np.random.default_rng().integers(10**6))
    options = dict(unpaired_halves=halves, paired_sample=sample, seed=seed, image_quality=0)
    preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out", **options))
    found = {split: keys(tmp_path / "out", split) for split in splitting.SPLITS}
    everything = sum(found.values(), [])
    assert len(set(everything)) == len(everything) == (60 if halves else 12) and set(everything) <= set(names)
    assert len(found["paired"]) == sample
    if halves:
        assert min(len(found["images"]), len(found["texts"])) > 5
        for example in read(tmp_path / "out", "images"):
            assert set(example) == {"key", "image"}
            assert example["image"] == [(tmp_path / "in" / example["key"][0].decode()).read_bytes()]
        for example in read(tmp_path / "out", "texts"):
            assert example["text"] == [b"the text of " + example["key"][0]] and set(example) == {"key", "text"}


def test_pairs_are_held_out(tmp_path):
    names, seed = write_folder(tmp_path / "in", 30), int(np.random.default_rng().integers(10**6))
    options = dict(held_out=0.1, seed=seed)
    found = preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out", **options))
    assert {split: values["records"] for split, values in found["splits"].items()} == {"paired": 27, "held_out": 3}
    assert sorted(keys(tmp_path / "out", "paired") + keys(tmp_path / "out", "held_out")) == sorted(names)
    for example in read(tmp_path / "out", "held_out"):
        assert example["text"] == [b"the text of " + example["key"][0]] and "image" in example
    # A folder that was finished before there was such a share.
    dataset = tmp_path / "out" / "dataset.json"
    del found["settings"]["held_out"]
    dataset.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="--held_out was 0.0, is now 0.1"):
        preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out", **options))
    preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out", seed=seed))
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"--held_out={share}: must be in \[0, 1\)"):
            preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "new", held_out=share))


def test_several_processes_write_the_same_bytes(tmp_path):
    write_folder(tmp_path / "in", 25)
    for workers in (1, 3):
        preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / str(workers), num_workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    """SIGKILL to the real command, in the middle of shards, notes and indexes; some pictures are damaged."""
    names = write_folder(tmp_path / "in", 250)
    bad = names[7::40]
    for name in bad:
        (tmp_path / "in" / name).write_bytes(b"no picture")
    command = [sys.executable, "-m", "tools.prepare", "folder", f"--input={tmp_path}/in", "--short_side=32",
               "--unpaired_halves", "--paired_sample=100", "--shard_bytes=20000", f"--max_bad_records={len(bad)}",
               "--num_workers=1"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run([*command, f"--output={whole}"], cwd=ROOT, capture_output=True, text=True)
    num_bad = len(set(bad) - set(keys(whole, "texts")))  # nobody looks at the picture of what became a text
    assert done.returncode == 0 and f"{num_bad} damaged item" in done.stdout, done.stderr
    assert num_bad >= 1 and (whole / "damaged.txt").read_text().count("not a picture") == num_bad
    assert len([name for name in contents(whole) if name.endswith(".tfrecord")]) > 10

    rng, kills = np.random.default_rng(), 0
    for _ in range(3):
        process = subprocess.Popen([*command, f"--output={killed}"], cwd=ROOT, stderr=subprocess.DEVNULL)
        # From the first new shard on, so that every kill hits the writing.
        before = set(killed.glob("*.tfrecord"))
        while process.poll() is None and set(killed.glob("*.tfrecord")) == before:
            time.sleep(0.001)
        time.sleep(float(rng.uniform(0, 0.02)))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    finished = set(killed.glob("*.tfrecord"))
    done = {path.stem.rpartition("-")[2] for path in (killed / ".work").glob("shard-*.json")}
    stamps = {path: path.stat().st_mtime_ns for path in finished if path.stem.rpartition("-")[2] in done}
    assert stamps or (killed / "dataset.json").exists()
    done = subprocess.run([*command, f"--output={killed}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"{num_bad} damaged item" in done.stdout, done.stderr
    assert contents(killed) == contents(whole)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "finished shards stay as they are"
    done = subprocess.run([*command, f"--output={killed}"], cwd=ROOT, capture_output=True, text=True)
    assert "already finished" in done.stdout and contents(killed) == contents(whole)


def test_damaged_items_are_counted_named_and_bounded(tmp_path, capsys):
    names = write_folder(tmp_path / "in", 12)
    bad = np.random.default_rng().choice(names, 3, replace=False).tolist()
    (tmp_path / "in" / bad[0]).write_bytes((tmp_path / "in" / bad[0]).read_bytes()[:-60])
    (tmp_path / "in" / bad[1]).with_suffix(".txt").write_bytes(b"\xff")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    (tmp_path / "in" / bad[2]).write_bytes(bomb.getvalue())
    source = Folder(str(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"damaged items so far: 3, above --max_bad_records=2"):
        preparing.run("folder", source, settings_of(tmp_path / "out", max_bad_records=2))
    assert not (tmp_path / "out" / "dataset.json").exists()
    found = preparing.run("folder", source, settings_of(tmp_path / "out", max_bad_records=3))
    assert found["damaged"] == 3 and keys(tmp_path / "out", "paired") == [name for name in names if name not in bad]
    lines = (tmp_path / "out" / "damaged.txt").read_text().splitlines()
    causes = dict(zip(bad, ("does not decode", "not UTF-8", "9000 x 9000 pixels"), strict=True))
    assert len(lines) == 3
    for line, name in zip(lines, sorted(bad), strict=True):
        assert line.startswith(f"{tmp_path}/in/{name}: ") and causes[name] in line
    assert all(line in capsys.readouterr().err for line in lines[:1])


def test_captions_of_one_picture_share_its_bytes(tmp_path):
    write_folder(tmp_path / "in", 2, texts=False)
    rows = [{"image": "000.png", "caption": ["a", "b", "c"]}, {"image": "001.png", "caption": "d"}]
    (tmp_path / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    preparing.run("jsonl", Jsonl(f"{tmp_path}/in/a.jsonl"), settings_of(tmp_path / "out"))
    found = read(tmp_path / "out", "paired")
    assert [(row["key"][0], row["text"][0]) for row in found] == [
        (b"000.png/0", b"a"), (b"000.png/1", b"b"), (b"000.png/2", b"c"), (b"001.png", b"d"),
    ]  # fmt: skip
    assert len({row["image"][0] for row in found[:3]}) == 1 and found[3]["image"] != found[0]["image"]


def write_texts(place, count):
    """Pictures with a text, of which some are empty. Returns the names of all, and of those without a text."""
    names = write_folder(place, count)
    empty = [names[n] for n in sorted(np.random.default_rng().choice(count, count // 3, replace=False).tolist())]
    for name in empty:
        (place / name).with_suffix(".txt").write_text(" \n")
    (place / "x.tif").write_bytes(b"passed over")
    return names, empty


def test_a_picture_without_any_text_stays_as_a_picture(tmp_path):
    names, empty = write_texts(tmp_path / "in", 12)
    found = preparing.run("folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "out"))
    assert (found["damaged"], found["empty_texts"], found["passed_over"]) == (0, 4, {".tif": 1})
    assert keys(tmp_path / "out", "images") == empty
    assert keys(tmp_path / "out", "paired") == [name for name in names if name not in empty]
    found = preparing.run(
        "folder", Folder(str(tmp_path / "in")), settings_of(tmp_path / "halves", unpaired_halves=True)
    )
    assert set(empty) <= set(keys(tmp_path / "halves", "images")), "also of those that were to give a text"
    rows = [{"image": f"in/{names[0]}", "caption": ["a", None, "b"]}, {"image": f"in/{names[1]}", "caption": ""}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = preparing.run("jsonl", Jsonl(f"{tmp_path}/a.jsonl"), settings_of(tmp_path / "rows"))
    assert found["empty_texts"] == 2 and keys(tmp_path / "rows", "images") == [f"in/{names[1]}"]
    assert keys(tmp_path / "rows", "paired") == [f"in/{names[0]}/0", f"in/{names[0]}/1"]


@pytest.mark.parametrize("options", [{}, {"unpaired_halves": True}])
def test_broken_off_anywhere_pictures_without_text_are_there_once(tmp_path, monkeypatch, options):
    """Their shards are further or less far than those of the pairs that they were listed among."""
    write_texts(tmp_path / "in", 40)
    source, rng = Folder(str(tmp_path / "in")), np.random.default_rng()
    preparing.run("folder", source, settings_of(tmp_path / "whole", shard_bytes=3000, **options))
    real, broken = shard_writer.encode, 0
    for attempt in range(12):
        left = 1 + attempt if attempt < 2 else int(rng.integers(1, 9))

        def fails(*given, left=[left]):  # noqa: B006
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return real(*given)

        monkeypatch.setattr(shard_writer, "encode", fails)
        try:
            preparing.run("folder", source, settings_of(tmp_path / "parts", shard_bytes=3000, **options))
        except KeyboardInterrupt:
            broken += 1
    monkeypatch.setattr(shard_writer, "encode", real)
    preparing.run("folder", source, settings_of(tmp_path / "parts", shard_bytes=3000, **options))
    assert broken >= 2 and contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("images-*.tfrecord"))) > 1


def test_what_is_refused(tmp_path):
    write_folder(tmp_path / "in", 3)
    source = Folder(str(tmp_path / "in"))
    rows = [{"image": "000.png", "caption": "a"}, {"image": "001.png", "caption": "b"}] * 2
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"the id '000.png' is there twice: .*twice.jsonl:1 and .*twice.jsonl:3"):
        preparing.run("jsonl", Jsonl(f"{tmp_path}/twice.jsonl"), settings_of(tmp_path / "out"))
    with pytest.raises(ValueError, match="--output is empty"):
        preparing.run("folder", source, settings_of(""))
    with pytest.raises(ValueError, match="--paired_sample=4: must be at most 3"):
        preparing.run("folder", source, settings_of(tmp_path / "out", paired_sample=4))
    with pytest.raises(ValueError, match="--shard_bytes=0: must be at least 1"):
        preparing.run("folder", source, settings_of(tmp_path / "out", shard_bytes=0))
    assert not (tmp_path / "out").exists()
    preparing.run("folder", source, settings_of(tmp_path / "out"))
    with pytest.raises(ValueError, match="dataset.json: --short_side was 16, is now 17"):
        preparing.run("folder", source, settings_of(tmp_path / "out", short_side=17))
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(ValueError, match="holds shards of something else"):
        preparing.run("folder", source, settings_of(tmp_path / "out"))
    for damaged in (b"{", b"[]", b'{"splits": {}}', b'{"splits": {"x": 1}, "settings": {}}'):
        (tmp_path / "out" / "dataset.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="dataset.json: not what tools.prepare writes"):
            preparing.run("folder", source, settings_of(tmp_path / "out"))


@pytest.mark.parametrize("num_good", [0, 20])
def test_what_changed_meanwhile_is_refused_once_a_shard_is_there(tmp_path, num_good):
    write_folder(tmp_path / "in", num_good + 1)
    (tmp_path / "in" / f"{num_good:03d}.png").write_bytes(b"")
    source = Folder(str(tmp_path / "in"))
    with pytest.raises(ValueError, match="max_bad_records=0"):
        preparing.run("folder", source, settings_of(tmp_path / "out"))
    assert bool(list((tmp_path / "out").glob("*.tfrecord"))) == bool(num_good)
    (tmp_path / "in" / f"{num_good:03d}.png").rename(tmp_path / "in" / "new.png")
    refused = [("the source's files have changed", {}), ("--seed was 0, is now 1", {"seed": 1})]
    for message, values in refused if num_good else [("new.png: not a picture", {}), ("new.png", {"seed": 1})]:
        with pytest.raises(ValueError, match=message):
            preparing.run("folder", source, settings_of(tmp_path / "out", **values))


def test_a_source_that_changed_since_is_told(tmp_path, capsys):
    write_folder(tmp_path / "in", 3)
    settings = settings_of(tmp_path / "out")

    def again():
        capsys.readouterr()
        found = preparing.run("folder", Folder(str(tmp_path / "in")), settings)
        assert found["splits"]["paired"]["records"] == 3
        return capsys.readouterr()

    again()
    assert again() == (f"{tmp_path}/out: already finished\n", "")
    (tmp_path / "in" / "000.png").rename(tmp_path / "in" / "new.png")
    assert again().err.startswith(f"warning: {tmp_path}/out: the source's files have changed since; name another")


def test_an_empty_source_is_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="no usable items: the source holds none"):
        preparing.run("jsonl", Jsonl(f"{tmp_path}/empty.jsonl"), settings_of(tmp_path / "out"))


def test_on_disks_and_object_stores(tmp_path, root):  # noqa: F811
    """Broken off by a damaged line, then called again."""
    rng = np.random.default_rng()
    lines = [b"text %d of many" % n for n in rng.permutation(900).tolist()]
    lines[850] = b"\xff"
    (tmp_path / "texts.txt").write_bytes(b"\n".join(lines))
    source, found = Text(str(tmp_path / "texts.txt")), {}
    for name, limits in (("whole", [1]), ("parts", [0, 1])):
        for limit in limits:
            settings = settings_of(storage.join(root, name), shard_bytes=5000, max_bad_records=limit)
            if not limit:
                with pytest.raises(ValueError, match="texts.txt:851: the text is not UTF-8"):
                    preparing.run("text", source, settings)
                assert ".work" in storage.list_dir(settings.output)
            else:
                preparing.run("text", source, settings)
        found[name] = {}
        for file in storage.list_dir(settings.output):
            with storage.open(storage.join(settings.output, file)) as opened:
                found[name][file] = opened.read()
    assert found["parts"] == found["whole"] and "texts-00007.tfrecord" in found["whole"]
    path = storage.join(root, "parts", "texts-00003.tfrecord")
    np.testing.assert_array_equal(shard_index.read(path), records.index(path))


def test_several_hosts_write_the_same_bytes(tmp_path, monkeypatch):
    """Each lists its parts, looks for twins in its ranges, and writes its shards; the first one ends the set."""
    monkeypatch.setattr(distribution, "POLLS", (0.01, 0.02))
    monkeypatch.setattr(listing, "RANGE", 20)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("".join(f"text {number} {n}\n" for n in range(40)))
    source, found = Text(f"{tmp_path}/*.txt"), {}
    preparing.run("text", source, settings_of(tmp_path / "one", shard_bytes=900))

    def host(index):
        found[index] = preparing.run("text", source, settings_of(tmp_path / "three", shard_bytes=900),
                                     Distribution(host_index=index, num_hosts=3))  # fmt: skip

    threads = [threading.Thread(target=host, args=(index,)) for index in (1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[1] is found[2] is None and found[0]["splits"]["texts"]["records"] == 120
    assert contents(tmp_path / "three") == contents(tmp_path / "one") and len(contents(tmp_path / "one")) > 8


def test_two_runs_on_one_output(tmp_path, gcs):  # noqa: F811
    """On a disk the later one is refused; on gs:// the earlier one leaves, and the later one goes on."""
    write_folder(tmp_path / "in", 30)
    source = Folder(str(tmp_path / "in"))
    for output, refused in ((str(tmp_path / "out"), 1), (f"gs://{BUCKET}/twice", 0)):
        runs, real = {}, shard_writer.encode

        def second(settings, chunk, output=output, runs=runs, real=real):
            if not runs:
                runs[1] = None
                try:
                    runs[1] = preparing.run("folder", source, settings_of(output))
                except ValueError as error:
                    runs[1] = str(error)
            return real(settings, chunk)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shard_writer, "encode", second)
            try:
                runs[0] = preparing.run("folder", source, settings_of(output))
            except ValueError as error:
                runs[0] = str(error)
        messages = "in use by another process", "another process has begun on it meanwhile"
        if refused:
            assert messages[0] in runs[1] and runs[0]["splits"]
        else:
            assert runs[1]["splits"] and messages[1] in runs[0]
