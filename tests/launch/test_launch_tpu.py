"""launch/tpu.sh and launch/worker.sh against a stand-in for gcloud: every command but resume."""

import os
import re
import shutil
import subprocess

import pytest

from tests.helpers.cloud import FLAGFILE, PLACE, RUN, changes, head, wait_for
from tests.helpers.common import ROOT

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
    "create --poll=soon": "--poll=soon: must be a number of seconds",
    "logs --worker=all": "--worker=all: must be a whole number",
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
    cloud.set(after_create=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
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


def test_setup_writes_where_nobody_can_foretell_and_leaves_nothing(ready, tmp_path):
    """A link that waits under the name of the commit is not written through."""
    target = tmp_path / "target"
    target.write_text("mine")
    link = ready.folder / f"itit-{head(ready.repository)}.tar.gz"
    link.symlink_to(target)
    before = set(ready.folder.iterdir())
    copied = [call for _ in range(2) for call in ready.good("setup").calls if "scp" in call]
    archives = {part for call in copied for part in call if part.startswith(str(ready.folder))}
    assert len(archives) == 2 and target.read_text() == "mine"
    assert set(ready.folder.iterdir()) == before


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
    words = ['--name with space=it\'s "so"', "--seed=$HOME;`x`"]
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
    ready.until_ready()
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


def test_status_of_a_run_that_ends_as_it_is_asked_for(ready):
    """Whether it lives is not yet known, and by then it has ended: what it left is read after that."""
    ready.set(trainers=["lingers"])
    ready.good("run", *RUN)
    ends = 'touch "$FAKE_CLOUD/asked"; shift; set -- --wait 30 "$@"'
    ready.script("worker_bin/flock", f'if [ "$1" = --nonblock ]; then {ends}; fi\nexec {shutil.which("flock")} "$@"')
    out = ready.good("status").out
    assert "t1v-n-w-0 done step 1/10" in out and "t1v-n-w-1 done step 1/10" in out


def test_status_tells_the_state_of_each_worker(ready):
    assert "t1v-n-w-0 absent" in ready.good("status").out
    ready.set(trainers=["fails"])
    ready.good("run", *RUN)
    lines = wait_for(ready, "t1v-n-w-1 failed with exit status 1 step 1/10 | 1.47 steps/s | loss 3.1")
    assert lines[0] == "itit: ACTIVE" and "t1v-n-w-0 running step 1/10 | 1.47 steps/s | loss 3.1" in lines


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
    ready.until_ready(times=2)


def test_stop_tells_of_a_run_that_does_not_end_and_kills_it_when_told_to(ready):
    ready.set(trainers=["hangs"])
    ready.good("run", *RUN)
    ready.until_ready()
    done = ready.tpu("stop", "--stop_timeout=0")
    assert done.status == 1 and "itit has not ended within 0 s" in done.err
    assert "t1v-n-w-0 running" in ready.good("status").out
    assert "t1v-n-w-1 stopped" in ready.good("stop", "--now").out
