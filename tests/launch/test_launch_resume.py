"""launch/tpu.sh against a stand-in for gcloud: resume, dry runs and the walk-through of launch/TPU.md."""

import re
import shlex
import shutil
import subprocess

import pytest

from tests.helpers.cloud import RUN, changes, wait_for
from tests.helpers.common import ROOT

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
    with subprocess.Popen(command, env=ready.env | {"TPU_POLL": "0.1"}, **pipes) as resume:
        for line in resume.stdout:
            if line.startswith("itit: running on 2 workers"):
                break
        ready.until_ready(times=2)
        ready.good("stop")
        rest = resume.stdout.read()
    assert resume.returncode == 0 and rest.endswith("itit: the run was stopped\n")


def test_resume_starts_a_run_anew_that_lost_a_worker(cloud):
    cloud.set(trainers=["hangs", "ends"], events=["", "", "reboot"])
    done, words = resumed(cloud)
    assert done.status == 0 and words == [*FRESH, "stop", "scp", "setup", "start"]
    assert len(cloud.read("launches")) == 4


def test_resume_starts_a_run_anew_that_hung(cloud):
    """The other worker, which waits for the one that hung, is ended by stop."""
    cloud.set(trainers=["freezes", "freezes", "ends"])
    done, words = resumed(cloud)
    assert done.status == 0 and words == [*FRESH, *["stop", "scp", "setup", "start"] * 2]
    assert "hung running on 2 workers" in done.err + done.out


def test_resume_does_not_take_an_error_for_an_earlier_hang(cloud):
    """Both are in one log and exit with 1."""
    cloud.set(trainers=["freezes", "fails"])
    done, words = resumed(cloud)
    assert done.status == 1 and words == [*FRESH, "stop", "scp", "setup", "start", "last_lines"]
    assert done.err.endswith("error: the run has failed: not started again\n")


def test_resume_gives_up_after_ten_hangs_and_shows_where(cloud):
    cloud.set(trainers=["freezes"])
    done, words = resumed(cloud)
    assert done.status == 1 and words.count("start") == 10 and words[-1] == "last_lines"
    assert "t1v-n-w-1 Timeout (0:00:00.100000)!" in done.out and "t1v-n-w-0 Timeout" not in done.out
    assert done.err.endswith("error: the run has hung 10 times: not started again\n")


def test_resume_bears_a_broken_connection_for_a_while(ready):
    ready.set(trainers=["waits", "ends"], events=["deaf"] * 9 + ["", "preempt"])
    ready.good("run", *RUN)
    done, words = resumed(ready)
    assert done.status == 0 and words == ["delete", *FRESH] and "ssh: connection timed out" in done.err


def test_resume_gives_up_after_ten_failures_in_a_row(cloud):
    cloud.set(after_create=[["FAILED"]] * 20)
    done, words = resumed(cloud)
    assert done.status == 1 and words.count("create") == 10 and "start" not in words
    assert done.err.endswith("error: 10 failures in a row: resume gives up; the TPU may be there\n")


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
        for name, text in (("python", "cat > /dev/null; echo same"), ("tensorboard", 'echo "tensorboard $*"')):
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
    assert not done.calls and not list(cloud.folder.glob("itit*")) and not done.err
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
    printed = [shlex.split(line) for line in cloud.good(command, *RUN, "--dry_run").out.splitlines() if line[0] != "#"]
    printed = [words[1:] for words in printed if words[0] == "gcloud"]
    called = cloud.good(command, *RUN).calls
    archive = re.compile(rf"{cloud.folder}/itit\.\w{{6}}")  # drawn anew each time
    assert archive.sub("*", str(printed)) == archive.sub("*", str(called))


def test_the_walk_through_of_tpu_md_is_made_of_commands_that_there_are(cloud):
    text = (ROOT / "launch" / "TPU.md").read_text()
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
