"""Stands in for `gcloud` and for the TPU VMs behind it, for tests of launch/tpu.sh.

`gcloud` records its arguments and refuses flags that the real one does not know (Google Cloud SDK 528). The workers are
folders: `ssh` runs its command there with the folder as home, so that launch/worker.sh runs as it is; only their
`python` is not real and plays the trainer. Everything lies in the folder $FAKE_CLOUD:

    state.json      what there is and what is to happen, see `Cloud` in test_launch_tpu.py
    calls.jsonl     arguments of gcloud
    launches.jsonl  trainers that were started
    installs.jsonl  what pip, apt-get and venv were asked for
    workers/N       homes of the workers
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

FOLDER = pathlib.Path(os.environ["FAKE_CLOUD"])
PLACE = {"zone", "project"}
COMMANDS = {
    "queued-resources list": PLACE | {"format"},
    "queued-resources describe": PLACE | {"format"},
    "queued-resources create": PLACE
    | {"node-id", "accelerator-type", "runtime-version", "spot", "service-account", "quiet"},
    "queued-resources delete": PLACE | {"force", "quiet"},
    "tpu-vm list": PLACE | {"format"},
    "tpu-vm ssh": PLACE | {"worker", "command", "quiet"},
    "tpu-vm scp": PLACE | {"worker", "quiet"},
}


def record(name, entry):
    with open(FOLDER / name, "a") as file:
        file.write(json.dumps(entry) + "\n")


def fail(text, status=1):
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(status)


# ---------------------------------------------------------------------------------------------- gcloud


def load():
    return json.loads((FOLDER / "state.json").read_text())


def store(state):
    (FOLDER / "state.json").write_text(json.dumps(state))


def kill_worker(home):
    """What a reset of the machine does: everything is gone at once, and no status is written."""
    for group in home.glob("itit/runs/*/group"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.killpg(int(group.read_text()), signal.SIGKILL)


def wipe_workers(state):
    for index in range(state["num_workers"]):
        home = FOLDER / "workers" / str(index)
        kill_worker(home)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)


def queued_resources(state, command, name, flags):
    if command == "list":
        print("other\tACTIVE")  # somebody else's
        if state["queued"]:
            print(f"{state['name']}\t{state['queued'][0]}")
        if len(state["queued"]) > 1:
            state["queued"].pop(0)
    elif command == "describe":
        print(f"state: {state['queued'][0]}, no more capacity")
    elif command == "create":
        if state["queued"]:
            fail("ALREADY_EXISTS")
        wipe_workers(state)
        state["name"], state["queued"], state["node"] = name, state["after_create"].pop(0), "READY"
    elif command == "delete":
        if not state["queued"]:
            fail("NOT_FOUND")
        if "force" not in flags and state["queued"][0] not in ("FAILED", "SUSPENDED", "WAITING_FOR_RESOURCES"):
            fail("FAILED_PRECONDITION: has a node: needs --force")
        wipe_workers(state)
        state["queued"], state["node"] = [], ""


def happen(state, command):
    """The next event of the script, when the state of a run is asked for."""
    if "worker.sh status" not in command or not state["events"]:
        return
    event = state["events"].pop(0)
    if event == "preempt":
        wipe_workers(state)
        state["queued"], state["node"] = ["ACTIVE", "SUSPENDED"], "PREEMPTED"
    elif event == "reboot":  # one worker of several
        kill_worker(FOLDER / "workers" / "1")
    elif event == "deaf":
        store(state)
        fail("ssh: connection timed out")


def on_workers(state, worker):
    if state["queued"][:1] != ["ACTIVE"] or state["node"] != "READY":
        fail(f"TPU is in state {state['node']} and cannot be used")
    return range(state["num_workers"]) if worker == "all" else [int(worker)]


def ssh(state, flags):
    happen(state, flags["command"])
    store(state)
    running = []
    for index in on_workers(state, flags["worker"]):
        home = FOLDER / "workers" / str(index)
        env = os.environ | {"HOME": str(home), "WORKER": str(index)}
        env["PATH"] = f"{FOLDER / 'worker_bin'}:{os.environ['PATH']}"
        print(f"SSH: Attempting to connect to worker {index}...", file=sys.stderr)
        command = ["bash", "-c", flags["command"]]
        running.append(subprocess.Popen(command, cwd=home, env=env, stdin=subprocess.DEVNULL))
    sys.exit(max(process.wait() for process in running))


def scp(state, names, flags):
    source, destination = names
    target, _, path = destination.partition(":")
    if target != state["name"]:
        fail(f"no TPU {target}")
    for index in on_workers(state, flags["worker"]):
        shutil.copy(source, FOLDER / "workers" / str(index) / path)


def gcloud(arguments):
    record("calls.jsonl", arguments)
    group, command, *rest = arguments[2:]
    words = [word for word in rest if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
    allowed = COMMANDS.get(f"{group} {command}")
    if arguments[:2] != ["compute", "tpus"] or allowed is None or not set(flags) <= allowed or "zone" not in flags:
        fail(f"unrecognized arguments: {arguments}", 2)
    state = load()
    if state["broken"]:
        fail("There was a problem refreshing your current auth tokens")
    if command == "ssh":
        ssh(state, flags)
    elif command == "scp":
        scp(state, words, flags)
    elif group == "tpu-vm":
        print("\n".join(["other\tREADY", f"{state['name']}\t{state['node']}"] if state["node"] else ["other\tREADY"]))
    else:
        queued_resources(state, command, *words or [None], flags)
    store(state)


# ---------------------------------------------------------------------------------------------- python of a worker


def make_venv(folder):
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "pip"):
        shutil.copy(FOLDER / "worker_bin" / "python3", folder / "bin" / name)


def train(arguments):
    """Plays itit.train: as the next of the `trainers` of the state says, counted for each worker."""
    worker = os.environ["WORKER"]
    log = FOLDER / "launches.jsonl"
    before = sum(json.loads(line)["worker"] == worker for line in log.read_text().splitlines()) if log.exists() else 0
    entry = {"worker": worker, "arguments": arguments, "device": os.environ.get("PJRT_DEVICE")}
    record("launches.jsonl", entry | {"code": os.getcwd()})
    kinds = load()["trainers"]
    kind = kinds[min(before, len(kinds) - 1)]
    print(f"step {before + 1}/10 | 1.47 steps/s | loss 3.1", flush=True)
    if kind == "fails" and worker == "1":
        sys.exit("error: loss is nan")
    if kind == "ends":
        sys.exit(0)

    def save(*_):
        print("interrupted: saved", flush=True)
        sys.exit(143)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "hangs" else save)
    print("ready for signals", flush=True)
    time.sleep(60)


def python(arguments):
    if arguments[:3] == ["-u", "-m", "itit.train"]:
        train(arguments[3:])
    elif arguments[:2] == ["-m", "venv"]:
        record("installs.jsonl", ["venv"])
        make_venv(pathlib.Path(arguments[-1]))
    elif arguments == ["-c", "import ensurepip"]:
        sys.exit(not load()["ensurepip"])
    else:
        record("installs.jsonl", arguments)


if __name__ == "__main__":
    if sys.argv[1] == "gcloud":
        gcloud(sys.argv[2:])
    elif sys.argv[1] == "sudo":
        record("installs.jsonl", sys.argv[2:])
    else:
        python(sys.argv[2:])
