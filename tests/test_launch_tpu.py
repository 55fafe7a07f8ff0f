"""launch/tpu.sh and launch/worker.sh against a stand-in for gcloud (`fake_cloud.py`) that has two workers."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import types

import pytest

from tests.common import ROOT

FLAGFILE = "launch/flagfiles/table2/row14.cfg"
RUN = (f"--flagfile={FLAGFILE}", "--workdir=gs://bucket/runs/x")
PLACE = ["--zone=us-central2-b"]
DEFAULT = {
    "name": "itit",  # of the TPU
    "queued": [],  # states of its queued resource, shown one after the other; the last one stays
    "node": "",  # state of the TPU itself
    "after_create": [["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]] * 9,  # `queued` after each create
    "num_workers": 2,
    "trainers": ["waits"],  # what the trainer does at its first start, second, ...: waits, ends, fails, hangs
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
            self.script(path, f'exec "{sys.executable}" -S "{ROOT / "tests" / "fake_cloud.py"}" {role} "$@"')
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

    def log(self, worker, run="itit"):
        return self.folder / "workers" / str(worker) / "itit" / "runs" / run / "log"

    def until_ready(self, run="itit"):
        """Waits until both trainers listen to signals."""
        deadline = time.monotonic() + 30
        while not all("ready for signals" in self.log(worker, run).read_text() for worker in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def changes(calls):
    """Calls that change something: without list and describe."""
    return [call[2:] for call in calls if call[3] not in ("list", "describe")]


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


# ---------------------------------------------------------------------------------------------- options

BAD = {
    "": "unknown command ''",
    "destroy": "unknown command 'destroy'",
    "create --zome=us-central2-b": "unknown option --zome",
    "create --zone": "--zone needs a value",
    "create --zone=here": "--zone=here: must be a zone",
    "create --zone us-central2-b": "--zone needs a value",
    "create us-central2-b": "unexpected argument 'us-central2-b'",
    "create --type=v4": "--type=v4: must be an accelerator type",
    "create --name=My_TPU": "--name=My_TPU: must be small letters",
    "create --spot=yes": "--spot=yes: must be true or false",
    "create --poll=soon": "--poll=soon: must be a whole number",
    "setup --ref=nowhere": "--ref=nowhere: no commit",
    f"run --flagfile={FLAGFILE}": "--workdir=: must be on gs://",
    f"run --flagfile={FLAGFILE} --workdir=runs/x": "--workdir=runs/x: must be on gs://",
    "run --workdir=gs://bucket/x": "--flagfile=: must be a flagfile",
    "run --workdir=gs://bucket/x --flagfile=x.cfg": "--flagfile=x.cfg: no such file in commit",
    "resume --workdir=gs://bucket/x --flagfile=x.cfg": "--flagfile=x.cfg: no such file in commit",
    f"run --run=a/b --flagfile={FLAGFILE} --workdir=gs://bucket/x": "--run=a/b: must be letters",
    "tensorboard": "--workdir=: must be the folder of a run",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_mistake_ends_in_one_line_before_anything_is_called(cloud, arguments):
    done = cloud.tpu(*arguments.split())
    assert done.status == 2 and not done.calls
    assert done.err.startswith(f"error: {BAD[arguments]}") and done.err.count("\n") == 1


def test_help_names_every_command_and_option():
    script = (ROOT / "launch" / "tpu_options.sh").read_text()
    declared = re.findall(r"\[(\w+)\]=", script[script.index("declare -A option") :].partition(")\n")[0])
    done = subprocess.run(["bash", ROOT / "launch" / "tpu.sh", "--help"], capture_output=True, text=True, check=True)
    assert len(declared) > 10 and all(f"--{name}" in done.stdout for name in declared)
    commands = re.findall(r"^tpu_(\w+)\(\)", (ROOT / "launch" / "tpu.sh").read_text(), re.MULTILINE)
    assert len(commands) == 9 and all(re.search(f"^{name} ", done.stdout, re.MULTILINE) for name in commands)


def test_the_environment_sets_options_and_the_command_line_wins(cloud):
    done = cloud.good("create", "--dry_run", "--name=mine", TPU_NAME="theirs", TPU_TYPE="v4-512", TPU_SPOT="true")
    create = next(line for line in done.out.splitlines() if " create " in line)
    assert "create mine --node-id=mine --accelerator-type=v4-512" in create and "--spot" in create


# ---------------------------------------------------------------------------------------------- create and delete


def create_call(*flags, place=PLACE, name="itit"):
    call = ["queued-resources", "create", name, f"--node-id={name}"]
    return [*call, "--accelerator-type=v4-8", "--runtime-version=tpu-ubuntu2204-base", *flags, "--quiet", *place]


DELETE = ["queued-resources", "delete", "itit", "--force", "--quiet", *PLACE]


def test_create_waits_until_the_tpu_is_there_and_a_second_create_asks_for_nothing(cloud):
    done = cloud.good("create")
    assert changes(done.calls) == [create_call()]
    assert "WAITING_FOR_RESOURCES" in done.out and done.out.endswith("itit: is there\n")
    again = cloud.good("create")
    assert changes(again.calls) == [] and again.out == "itit: is there\n"


def test_create_passes_what_it_is_told(cloud):
    place = ["--zone=europe-west4-b", "--project=mine"]
    account = "--service-account=a@b.iam"
    done = cloud.good("create", "--name=pod", "--spot", "--service_account=a@b.iam", *place)
    assert changes(done.calls) == [create_call("--spot", account, place=place, name="pod")]
    assert all(call[-2:] == place for call in done.calls)


@pytest.mark.parametrize("state", ["ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES", "CREATING"])
def test_create_waits_for_what_was_asked_for_before(cloud, state):
    cloud.set(queued=[state, "ACTIVE"], node="READY")
    done = cloud.good("create")
    assert changes(done.calls) == [] and state in done.out


@pytest.mark.parametrize("queued, node", [("FAILED", ""), ("SUSPENDED", ""), ("ACTIVE", "PREEMPTED"), ("ACTIVE", "")])
def test_create_replaces_what_is_lost(cloud, queued, node):
    cloud.set(queued=[queued], node=node)
    assert changes(cloud.good("create").calls) == [DELETE, create_call()]


def test_create_waits_until_a_lost_one_may_be_deleted(cloud):
    cloud.set(queued=["SUSPENDING", "SUSPENDED"])
    assert changes(cloud.good("create").calls) == [DELETE, create_call()]


def test_create_says_why_its_request_failed_and_asks_no_more(cloud):
    cloud.set(after_create=[["PROVISIONING", "FAILED"]])
    done = cloud.tpu("create")
    assert done.status == 1 and changes(done.calls) == [create_call()]
    assert "no more capacity" in done.err and done.err.endswith("error: the request for TPU itit has failed\n")


def test_a_gcloud_that_fails_ends_the_command_and_is_not_taken_for_no_tpu(cloud):
    cloud.set(broken=True, queued=["ACTIVE"], node="READY")
    for command in ("create", "setup", "logs", "status", "stop", "delete"):
        done = cloud.tpu(command)
        assert done.status == 1 and changes(done.calls) == [] and "auth tokens" in done.err


def test_delete_gives_the_tpu_back_once(ready):
    assert changes(ready.good("delete").calls) == [DELETE]
    done = ready.good("delete")
    assert changes(done.calls) == [] and done.out == "itit: is not there: nothing to delete\n"


# ---------------------------------------------------------------------------------------------- setup


def head(repository):
    command = ["git", "-C", str(repository), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_setup_puts_the_commit_and_its_environment_on_all_workers(ready):
    for worker in (0, 1):
        home = ready.folder / "workers" / str(worker) / "itit"
        assert os.readlink(home / "current") == head(ready.repository)
        assert (home / "current" / FLAGFILE).read_text() == (ROOT / FLAGFILE).read_text()
    installs = [entry for entry in ready.read("installs") if "-r" in entry]
    assert len(installs) == 2 and all(entry[-1] == "torch_xla[tpu]" for entry in installs)
    assert all(entry[:4] == ["-m", "pip", "install", "--quiet"] for entry in installs)


def test_setup_again_installs_nothing(ready):
    before = ready.read("installs")
    done = ready.good("setup")
    assert "t1v-n-w-1 has commit" in done.out and ready.read("installs") == before


def test_setup_copies_what_is_committed_and_says_so(ready):
    path = ready.repository / "launch" / "new.sh"
    path.write_text("exit\n")
    try:
        done = ready.good("setup")
    finally:
        path.unlink()
    assert "changes that are not committed are not copied" in done.out
    assert not (ready.folder / "workers" / "0" / "itit" / "current" / "launch" / "new.sh").exists()


def test_setup_installs_venv_where_the_image_lacks_it(cloud):
    cloud.set(ensurepip=False)
    cloud.good("create")
    cloud.good("setup")
    packages = [entry[-1] for entry in cloud.read("installs") if entry[0] == "apt-get"]
    assert packages.count("python3-venv") == 2


def test_commands_that_need_a_tpu_say_that_there_is_none(cloud):
    for command in (["setup"], ["run", *RUN], ["logs"]):
        done = cloud.tpu(*command)
        assert done.status == 1 and done.err == "error: TPU itit in us-central2-b is not there (NONE): call create\n"
    assert cloud.good("status").out == "itit: NONE\n"
    assert cloud.good("stop").out == "itit: NONE: nothing to stop\n"


# ---------------------------------------------------------------------------------------------- run, logs, status, stop


def test_run_starts_training_on_all_workers_once(ready):
    words = ["--name with space=it's \"so\"", "--seed=$HOME;`x`"]
    first = ready.good("run", *RUN, "--", *words)
    ready.until_ready()
    launches = ready.read("launches")
    assert sorted(launch["worker"] for launch in launches) == ["0", "1"]
    for launch in launches:
        assert launch["arguments"] == [*RUN, "--backend=xla", *words] and launch["device"] == "TPU"
        assert launch["code"].endswith(f"workers/{launch['worker']}/itit/{head(ready.repository)}")
    assert "t1v-n-w-0 itit started" in first.out and "t1v-n-w-1 itit started" in first.out
    again = ready.good("run", *RUN, "--", *words)
    assert "t1v-n-w-1 itit runs already" in again.out and len(ready.read("launches")) == 2


def test_a_tpu_has_one_run_with_one_set_of_flags(ready):
    ready.good("run", *RUN)
    other_flags = ready.tpu("run", *RUN, "--", "--seed=1")
    assert other_flags.status == 1 and "itit runs already with other flags: --flagfile=" in other_flags.err
    other_run = ready.tpu("run", *RUN, "--run=second")
    assert other_run.status == 1 and "run itit is going on: stop it first" in other_run.err
    assert len(ready.read("launches")) == 2


def test_run_refuses_another_commit_than_the_one_set_up(ready):
    for worker in (0, 1):
        home = ready.folder / "workers" / str(worker) / "itit"
        (home / "current").rename(home / "kept")
        (home / os.readlink(home / "kept")).rename(home / "older")
        (home / "current").symlink_to("older")
    done = ready.tpu("run", *RUN)
    assert done.status == 1 and f"has commit older, not {head(ready.repository)}: call setup" in done.err


def test_setup_of_another_commit_waits_for_the_end_of_a_run(ready):
    ready.good("run", *RUN)
    command = f"mv itit/{head(ready.repository)} itit/newer && bash itit/newer/launch/worker.sh setup"
    home = ready.folder / "workers" / "0"
    env = ready.env | {"PATH": f"{ready.folder / 'worker_bin'}:{ready.env['PATH']}", "WORKER": "0"}
    done = subprocess.run(["bash", "-c", command], cwd=home, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "run itit is going on" in done.stderr


def test_status_tells_the_state_of_each_worker(ready):
    assert "t1v-n-w-0 absent" in ready.good("status").out
    ready.set(trainers=["fails"])
    ready.good("run", *RUN)
    lines = wait_for(ready, "t1v-n-w-1 failed with exit status 1 step 1/10 | 1.47 steps/s | loss 3.1")
    assert lines[0] == "itit: ACTIVE" and "t1v-n-w-0 running step 1/10 | 1.47 steps/s | loss 3.1" in lines


def wait_for(cloud, line):
    """Asks for the status until a worker tells this line."""
    deadline = time.monotonic() + 30
    while line not in (lines := cloud.good("status").out.splitlines()):
        assert time.monotonic() < deadline, lines
    return lines


def test_logs_follow_one_worker_until_the_run_ends(ready):
    ready.good("run", *RUN)
    ready.until_ready()
    command = ["bash", str(ready.repository / "launch" / "tpu.sh"), "logs", "--worker=1"]
    with subprocess.Popen(command, env=ready.env, stdout=subprocess.PIPE, text=True) as logs:
        assert "python -m itit.train --flagfile=" in logs.stdout.readline()
        assert logs.stdout.readline().startswith("step 1/10")
        ready.good("stop")
        assert logs.stdout.read() == "ready for signals\ninterrupted: saved\n"
    calls = [call for call in ready.read("calls") if "worker.sh follow" in str(call)]
    assert "--worker=1" in calls[0]
    assert ready.good("logs").out.endswith("interrupted: saved\n")
    assert ready.tpu("logs", "--run=none").status == 1


def test_stop_lets_the_run_save_and_a_second_stop_does_nothing(ready):
    ready.good("run", *RUN)
    ready.until_ready()
    done = ready.good("stop")
    assert "t1v-n-w-0 stopped" in done.out and "t1v-n-w-1 stopped" in done.out
    assert all(ready.log(worker).read_text().endswith("interrupted: saved\n") for worker in (0, 1))
    assert "t1v-n-w-0 itit is not running" in ready.good("stop").out
    ready.good("run", *RUN)
    assert len(ready.read("launches")) == 4


def test_stop_tells_of_a_run_that_does_not_end_and_kills_it_when_told_to(ready):
    ready.set(trainers=["hangs"])
    ready.good("run", *RUN)
    ready.until_ready()
    done = ready.tpu("stop", "--stop_timeout=0")
    assert done.status == 1 and "itit has not ended within 0 s" in done.err
    assert "t1v-n-w-0 running" in ready.good("status").out
    assert "t1v-n-w-1 stopped" in ready.good("stop", "--now").out


# ---------------------------------------------------------------------------------------------- resume


def resumed(cloud, *arguments):
    """Runs resume. Returns what it did, in short: the commands that changed something."""
    done = cloud.tpu("resume", *RUN, *arguments)
    words = []
    for call in changes(done.calls):
        command = next((word for word in call if word.startswith("--command=")), "")
        found = re.search(r"worker.sh (\w+)", command)
        if found is None or found[1] != "status":
            words.append(found[1] if found else call[1])
    return done, words


FRESH = ["create", "scp", "setup", "start"]


def test_resume_does_everything_again_after_a_preemption_until_the_run_is_done(cloud):
    cloud.set(trainers=["waits", "waits", "ends"], events=["", "preempt", "", "", "preempt"])
    done, words = resumed(cloud)
    assert done.status == 0 and done.out.endswith("itit: the run is done\n")
    assert words == [*FRESH, "delete", *FRESH, "delete", *FRESH]
    assert len(cloud.read("launches")) == 6


def test_resume_of_a_run_that_is_done_does_nothing(ready):
    ready.set(trainers=["ends"])
    ready.good("run", *RUN)
    wait_for(ready, "t1v-n-w-1 done step 1/10 | 1.47 steps/s | loss 3.1")
    done, words = resumed(ready)
    assert done.status == 0 and words == []


def test_resume_stops_at_a_failure_and_shows_the_last_lines(cloud):
    cloud.set(trainers=["fails"])
    done, words = resumed(cloud)
    assert done.status == 1 and words == [*FRESH, "last_lines"]
    assert "t1v-n-w-1 error: loss is nan" in done.out and "t1v-n-w-0 step" not in done.out
    assert done.err.endswith("error: the run has failed: not started again\n")


def test_resume_takes_failures_before_a_preemption_for_the_preemption(cloud):
    cloud.set(trainers=["fails", "ends"])
    cloud.good("create")
    cloud.good("setup")
    cloud.good("run", *RUN)
    wait_for(cloud, "t1v-n-w-1 failed with exit status 1 step 1/10 | 1.47 steps/s | loss 3.1")
    cloud.set(events=["", "preempt"])
    done, words = resumed(cloud)
    assert done.status == 0 and words == ["delete", *FRESH]


def test_resume_gives_the_tpu_back_where_it_is_told_to(cloud):
    cloud.set(trainers=["ends"])
    done, words = resumed(cloud, "--delete_after")
    assert done.status == 0 and words == [*FRESH, "delete"]
    cloud.set(trainers=["fails"])
    done, words = resumed(cloud, "--delete_after")
    assert done.status == 1 and words == [*FRESH, "last_lines", "delete"]


def test_resume_starts_a_stopped_run_but_not_one_stopped_under_it(ready):
    ready.good("run", *RUN)
    ready.until_ready()
    ready.good("stop")
    command = ["bash", str(ready.repository / "launch" / "tpu.sh"), "resume", *RUN]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=ready.env | {"TPU_POLL": "1"}, **pipes) as resume:
        for line in resume.stdout:
            if line.startswith("itit: running on 2 workers"):
                break
        ready.until_ready()
        ready.good("stop")
        rest = resume.stdout.read()
    assert resume.returncode == 0 and rest.endswith("itit: the run was stopped\n")
    assert len(ready.read("launches")) == 4


def test_resume_starts_a_run_anew_that_lost_a_worker(cloud):
    cloud.set(trainers=["hangs", "ends"], events=["", "", "reboot"])
    done, words = resumed(cloud)
    assert done.status == 0 and words == [*FRESH, "stop", "scp", "setup", "start"]
    assert len(cloud.read("launches")) == 4


def test_resume_bears_some_failures_of_the_connection_but_not_all(cloud):
    cloud.set(trainers=["waits"], events=["deaf"] * 9 + ["", "preempt"] + ["deaf"] * 10)
    done, words = resumed(cloud)
    assert done.status == 1 and words == [*FRESH, "delete", *FRESH]
    assert "ssh: connection timed out" in done.err
    assert done.err.endswith("error: 10 failures in a row: resume gives up; the TPU may still be there\n")


def test_resume_asks_ten_times_for_a_tpu_that_cannot_be_had(cloud):
    cloud.set(after_create=[["FAILED"]] * 20)
    done, words = resumed(cloud)
    assert done.status == 1 and words.count("create") == 10 and words.count("start") == 0


def test_resume_keeps_the_commit_and_the_flags_that_it_began_with(cloud):
    cloud.set(trainers=["waits", "ends"], events=["", "preempt"])
    done = cloud.tpu("resume", *RUN, "--", "--seed=two words")
    assert done.status == 0
    launches = cloud.read("launches")
    assert all(launch["arguments"][-1] == "--seed=two words" for launch in launches) and len(launches) == 4


# ---------------------------------------------------------------------------------------------- TensorBoard, dry runs


def test_tensorboard_shows_the_workdir(cloud):
    venv = cloud.repository / ".venv"
    try:
        for name, text in (("python", "echo same"), ("tensorboard", 'echo "tensorboard $*"')):
            (venv / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
            (venv / "bin" / name).chmod(0o755)
        (venv / "installed").write_text("same\n")
        done = cloud.good("tensorboard", "--workdir=gs://bucket/runs/x")
    finally:
        shutil.rmtree(venv)
    assert done.out == "tensorboard --logdir=gs://bucket/runs/x\n" and not done.calls


def pasted(cloud, lines):
    """What gcloud is called with when the lines are pasted into a shell."""
    before = len(cloud.read("calls"))
    text = "\n".join(line for line in lines if "tensorboard" not in line)
    subprocess.run(["bash", "-c", text], env=cloud.env, capture_output=True, timeout=60)
    return cloud.read("calls")[before:]


COMMANDS = ("create", "setup", "run", "logs", "status", "stop", "resume", "tensorboard", "delete")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_calls_nothing_and_prints_what_can_be_pasted(cloud, command):
    arguments = [command, *RUN, "--dry_run", "--spot", "--", "--x=a 'b' $c"]
    done = cloud.good(*arguments)
    assert not done.calls and not list(cloud.folder.glob("*.tar.gz")) and not done.err
    lines = [line for line in done.out.splitlines() if not line.startswith("#")]
    for line in lines:
        words = shlex.split(line)
        assert words[:3] == ["gcloud", "compute", "tpus"] or words[0] == "git" or "tensorboard" in words[0]
    calls = pasted(cloud, lines)
    assert len(calls) == sum(line.startswith("gcloud") for line in lines)
    if command in ("run", "resume"):
        assert any("--x=a '\\''b'\\'' $c" in word for call in calls for word in call)


@pytest.mark.parametrize("command", ["create", "setup", "run", "status", "stop", "delete"])
def test_a_dry_run_prints_what_the_command_does(cloud, command):
    for earlier in ("create", "setup", "run"):
        if command in ("create", earlier):
            break
        cloud.good(earlier, *RUN)
    cloud.set(after_create=[["ACTIVE"]])
    printed = [shlex.split(line) for line in cloud.good(command, *RUN, "--dry_run").out.splitlines() if line[0] != "#"]
    printed = [words[1:] for words in printed if words[0] == "gcloud"]
    assert printed == cloud.good(command, *RUN).calls


def test_the_walk_through_of_the_readme_is_made_of_commands_that_there_are(cloud):
    text = (ROOT / "launch" / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    exported = dict(
        word.split("=", 1) for line in lines if line.startswith("export TPU_") for word in shlex.split(line)[1:]
    )
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("bash launch/tpu.sh")]
    for words in commands:
        cut = words.index("--") if "--" in words else len(words)
        done = cloud.good(*words[2:cut], "--dry_run", *words[cut:], **exported)
        assert "gcloud" in done.out or "tensorboard" in done.out
    assert {words[2] for words in commands} == set(COMMANDS)
