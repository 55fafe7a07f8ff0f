"""Stands in for `gcloud` and for the TPU VMs behind it, for tests of launch/tpu.sh.

`gcloud` records its arguments and refuses flags that the real one does not know (Google Cloud SDK 528). The workers are
folders: `ssh` runs its command there with the folder as home, so that launch/worker.sh runs as it is; only their
`python` is not real and plays the trainer. Everything lies in the folder $FAKE_CLOUD:

    state.json      what there is and what is to happen, see `DEFAULT` in cloud.py
    calls.jsonl     arguments of gcloud
    launches.jsonl  trainers that were started
    installs.jsonl  what pip, apt-get and venv were asked for
    workers/N       homes of the workers
"""

import contextlib
import faulthandler
import glob
import json
import os
import shutil
import signal
import sys
import time

FOLDER = os.environ["FAKE_CLOUD"]
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


def path(*parts):
    return os.path.join(FOLDER, *map(str, parts))


def record(name, entry):
    with open(path(name), "a") as file:
        file.write(json.dumps(entry) + "\n")


def fail(text, status=1):
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(status)


# ---------------------------------------------------------------------------------------------- gcloud


def load():
    with open(path("state.json")) as file:
        return json.load(file)


def store(state):
    new = path(f"state.json.{os.getpid()}")  # two calls of gcloud may run at once
    with open(new, "w") as file:
        json.dump(state, file)
    os.replace(new, path("state.json"))


def kill_worker(index):
    """What a reset of the machine does: everything is gone at once, and no status is written."""
    for name in glob.glob(path("workers", index, "itit/runs/*/group")):
        with open(name) as file:
            group = int(file.read())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def wipe_workers(state):
    for index in range(state["num_workers"]):
        kill_worker(index)
        shutil.rmtree(path("workers", index), ignore_errors=True)
        os.makedirs(path("workers", index))


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
        kill_worker(1)
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
        print(f"SSH: Attempting to connect to worker {index}...", file=sys.stderr, flush=True)
        env = os.environ | {"HOME": path("workers", index), "WORKER": str(index)}
        env["PATH"] = f"{path('worker_bin')}:{os.environ['PATH']}"
        text = f"cd && {flags['command']}"
        running.append(os.spawnvpe(os.P_NOWAIT, "bash", ["bash", "-c", text], env))
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running))


def scp(state, names, flags):
    source, destination = names
    target, _, name = destination.partition(":")
    if target != state["name"]:
        fail(f"no TPU {target}")
    for index in on_workers(state, flags["worker"]):
        shutil.copy(source, path("workers", index, name))


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
    os.makedirs(os.path.join(folder, "bin"))
    for name in ("python", "pip"):
        shutil.copy(path("worker_bin", "python3"), os.path.join(folder, "bin", name))


def times_started(worker):
    if not os.path.exists(path("launches.jsonl")):
        return 0
    with open(path("launches.jsonl")) as file:
        return sum(json.loads(line)["worker"] == worker for line in file)


def train(arguments):
    """Plays itit.train: as the next of the `trainers` of the state says, counted for each worker."""
    worker = os.environ["WORKER"]
    before = times_started(worker)
    entry = {"worker": worker, "arguments": arguments, "device": os.environ.get("PJRT_DEVICE")}
    record("launches.jsonl", entry | {"code": os.getcwd()})
    kinds = load()["trainers"]
    kind = kinds[min(before, len(kinds) - 1)]
    print(f"step {before + 1}/10 | 1.47 steps/s | loss 3.1", flush=True)
    if kind == "fails" and worker == "1":
        sys.exit("error: loss is nan")
    if kind == "freezes" and worker == "1":
        faulthandler.dump_traceback_later(0.1, exit=True)  # what itit.training.watchdog calls
        time.sleep(60)
    if kind == "lingers":
        while not os.path.exists(path("asked")):
            time.sleep(0.01)
    if kind in ("ends", "lingers"):
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
        make_venv(arguments[-1])
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
