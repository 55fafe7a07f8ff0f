"""A real Ray of two processes, and Google Cloud Storage on loopback: killed workers, killed drivers, bad weather, and
the same shards as on one machine."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from itit import storage
from tests.helpers.common import ROOT
from tests.helpers.flaky_storage import BUCKET, Weather
from tests.helpers.pictures import write_shards
from tests.tools.training.test_train_vqgan import save_random_vqgan

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install -e .[ray])")
PATIENCE = 500


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(environment in which Ray is found, the weather before gs://weather)."""
    folder = tmp_path_factory.mktemp("ray")
    with Weather() as weather:
        environment = os.environ | weather.environment | {
            "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # else a machine that does other work hardly lets them begin
        }  # fmt: skip
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
                   "--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
                   "--object-store-memory=80000000", f"--temp-dir={folder}"]  # fmt: skip
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        address = folder / "ray_current_cluster"
        wait(lambda: address.exists() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        yield environment | {"RAY_ADDRESS": address.read_text().strip()}, weather
        process.terminate()  # it ends all that it has started
        process.wait()


def wait(until):
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(environment, tool, *arguments):
    return subprocess.Popen([sys.executable, "-m", f"tools.{tool}", *arguments], cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def end(process, code=0):
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    return out + err


def contents(folder):
    return {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_dir(folder)
            if name.endswith((".tfrecord", ".index", ".json", ".txt"))}  # fmt: skip


def workers():
    """Process ids of Ray's workers that are at a task."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::shard"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def write_pairs(folder, count):
    """A folder of pictures with a text of their own, two of them damaged."""
    folder.mkdir()
    for number, (_, features) in enumerate(write_shards(folder, [count])):
        (folder / f"{number:04d}.png").write_bytes(features["image"])
        (folder / f"{number:04d}.txt").write_text(f"text {number}")
    (folder / "raw-0.tfrecord").unlink()
    for number in np.random.default_rng().choice(count, 2, replace=False).tolist():
        (folder / f"{number:04d}.png").write_bytes(b"no picture")


def test_prepare_through_kills_and_weather(cluster, tmp_path, monkeypatch):
    environment, weather = cluster
    for name, value in weather.environment.items():
        monkeypatch.setenv(name, value)
    write_pairs(tmp_path / "in", 100)
    flags = ["folder", f"--input={tmp_path}/in", "--short_side=32", "--shard_bytes=12000", "--max_bad_records=2",
             "--unpaired_halves", "--paired_sample=50"]  # fmt: skip
    told = end(start(environment, "prepare", *flags, f"--output={tmp_path}/local", "--num_workers=1"))
    output, whole = f"gs://{BUCKET}/prepared", contents(f"{tmp_path}/local")
    assert len(whole) > 12

    weather.share = 0.02
    driver = start(environment, "prepare", *flags, f"--output={output}", "--distributor=ray")
    wait(lambda: any(name.startswith("shard-") for name in storage.list_dir(f"{output}/.work")))
    victim = wait_for_worker()
    os.kill(victim, signal.SIGKILL)
    driver.kill()
    driver.communicate()
    kept = set(storage.list_dir(f"{output}/.work"))
    assert "dataset.json" not in storage.list_dir(output)
    driver = start(environment, "prepare", *flags, f"--output={output}", "--distributor=ray")
    os.kill(wait_for_worker(), signal.SIGKILL)
    said = end(driver)
    weather.share = 0.0
    for line in told.splitlines():
        assert " records of " not in line or line in said
    assert weather.num_failed > 0 and len(kept) > 3
    assert contents(output) == whole
    assert ".work" not in storage.list_dir(output)


def wait_for_worker():
    found = []
    wait(lambda: found.extend(workers()) or found)
    return found[0]


def test_tokenize_beside_one_machine(cluster, tmp_path, monkeypatch):
    environment, weather = cluster
    for name, value in weather.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "raw").mkdir()
    write_shards(tmp_path / "raw", [70, 9, 30])
    flags = [f"--input={tmp_path}/raw/*", f"--vqgan={save_random_vqgan(tmp_path / 'vqgan')}", "--backend=cpu"]
    end(start(environment, "tokenize", *flags, f"--output={tmp_path}/local/part"))
    said = end(start(environment, "tokenize", *flags, f"--output=gs://{BUCKET}/ids/part", "--distributor=ray"))
    assert "109 records in 3 shards" in said
    assert contents(f"gs://{BUCKET}/ids") == contents(f"{tmp_path}/local")


def test_what_is_refused_in_one_line(cluster, tmp_path):
    environment, _ = cluster
    (tmp_path / "a.txt").write_text("a\n")
    flags = ["text", f"--input={tmp_path}/a.txt", f"--output={tmp_path}/out", "--distributor=ray"]
    for change, more, message in (
        ({"RAY_ADDRESS": "127.0.0.1:1"}, [], "no Ray cluster is there"),
        ({}, ["--task_needs=CPU:1,GPU:8"], "no machine of the Ray cluster has"),
    ):
        said = end(start(environment | change, "prepare", *flags, *more), 2).splitlines()
        assert said[-1].startswith("error: ") and message in said[-1], said
    (tmp_path / "a.txt").write_bytes(b"\xff\n")
    said = end(start(environment, "prepare", *flags), 2)
    assert f"error: {tmp_path}/a.txt:1: the text is not UTF-8 (damaged items so far: 1" in said
    json.loads((tmp_path / "out" / ".work" / "begun.json").read_text())
