"""The stand-in for gcloud (`fake_cloud.py`) with two workers, and tpu.sh in front of it: fixtures of its tests."""

import json
import os
import shutil
import subprocess
import sys
import time
import types

import pytest

from tests.helpers.common import ROOT

FAKE = ROOT / "tests" / "helpers" / "fake_cloud.py"

FLAGFILE = "launch/flagfiles/table2/row14.cfg"
RUN = (f"--flagfile={FLAGFILE}", "--workdir=gs://bucket/runs/x")
PLACE = ["--zone=us-central2-b"]
DEFAULT = {
    "name": "itit",  # of the TPU
    "queued": [],  # states of its queued resource, shown one after the other; the last one stays
    "node": "",  # state of the TPU itself
    "after_create": [["ACTIVE"]] * 9,  # `queued` after each create
    "num_workers": 2,
    # What the trainer does at its first start, second, ...: waits, ends, fails, hangs (deaf to SIGTERM), freezes (its
    # watchdog ends it) or lingers (ends when the file `asked` is there)
    "trainers": ["waits"],
    "events": [],  # what happens as the state of the run is asked for: "", preempt, reboot, deaf
    "broken": False,  # gcloud fails
    "ensurepip": True,
}


class Cloud:
    """The stand-in, and tpu.sh of a repository of its own in front of it."""

    def __init__(self, folder, repository):
        self.folder, self.repository = folder, repository
        for path in ("workers/0", "workers/1", "bin", "worker_bin"):
            (folder / path).mkdir(parents=True)
        for path, role in (("bin/gcloud", "gcloud"), ("worker_bin/python3", "python"), ("worker_bin/sudo", "sudo")):
            self.script(path, f'exec "{sys.executable}" -S "{FAKE}" {role} "$@"')
        self.script("worker_bin/hostname", 'echo "t1v-n-w-$WORKER"')
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("TPU_")}
        self.env |= {"FAKE_CLOUD": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
        self.env |= {"TMPDIR": str(folder), "TPU_POLL": "0"}
        self.set(**DEFAULT)

    def script(self, path, text):
        (self.folder / path).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / path).chmod(0o755)

    def set(self, **values):
        path = self.folder / "state.json"
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    def tpu(self, *arguments, **env):
        """Runs tpu.sh. Returns status, stdout, stderr and the calls of gcloud that it made."""
        before = len(self.read("calls"))
        command = ["bash", str(self.repository / "launch" / "tpu.sh"), *arguments]
        done = subprocess.run(command, env=self.env | env, capture_output=True, text=True, timeout=60)
        calls = self.read("calls")[before:]
        return types.SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr, calls=calls)

    def good(self, *arguments, **env):
        done = self.tpu(*arguments, **env)
        assert done.status == 0, done
        return done

    def read(self, name):
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, worker):
        return self.folder / "workers" / str(worker) / "itit" / "runs" / "itit" / "log"

    def until_ready(self, times=1):
        """Waits until the trainers, started so many times, have said what they are given and listen to signals."""
        deadline = time.monotonic() + 30
        while not all(self.log(worker).read_text().count("ready for signals") == times for worker in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def changes(calls):
    """Calls that change something: without list and describe."""
    return [call[2:] for call in calls if call[3] not in ("list", "describe")]


def head(repository):
    command = ["git", "-C", str(repository), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(cloud, line):
    """Asks for the status until a worker tells this line."""
    deadline = time.monotonic() + 30
    while line not in (lines := cloud.good("status").out.splitlines()):
        assert time.monotonic() < deadline, lines
    return lines


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with the launch folder of this one."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "launch", folder / "launch")
    for name in ("requirements.txt", "setup.py", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=all"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, repository):
    made = Cloud(tmp_path / "cloud", repository)
    yield made
    for group in made.folder.glob("workers/*/itit/runs/*/group"):
        subprocess.run(["kill", "-KILL", "--", f"-{group.read_text().strip()}"], stderr=subprocess.DEVNULL)


@pytest.fixture
def ready(cloud):
    """A cloud whose TPU is there and set up."""
    cloud.good("create")
    cloud.good("setup")
    return cloud
