"""Runs the experiments of a study: processes side by side, each in its own folder, until every run has its line.

    OUTPUT/runs/DIGEST/            one run: checkpoints and curves of itit.train, log.txt, scores.json
    OUTPUT/data/                   see study_data.py

A run belongs to whoever holds its `lock`, and a process of the run holds it, too: where a study is killed, its
successor waits until what it left behind has ended (on Linux that is told to end at once), and then goes on.
"""

import contextlib
import json
import os
import re
import sys
import time

import tqdm

from itit import storage
from tools.studies import study_results
from tools.studies.processes import cores, last_line, locked, start, stop, tail

POLL_SECONDS, NOTE_SECONDS = 0.2, 10
BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"


def make_data(data, runs, log, threads, backend):
    """Everything that runs read. Raises ValueError naming the log where a command fails."""
    storage.make_dirs(os.path.dirname(log))
    waited = False
    while True:
        with locked(os.path.join(os.path.dirname(log), "lock")) as lock:
            if lock is None:
                waited or print("waits for another process that makes data", flush=True)
                waited = True
                time.sleep(1)
                continue
            for command in tqdm.tqdm(data.commands(runs), "data", unit=" commands", disable=None):
                own = () if command.module in ("tools.make_scenes", "tools.train_sentencepiece") else backend
                process = start(command.module, (*command.arguments, *own), log, threads, lock)
                try:
                    code = process.wait()
                except BaseException:
                    stop([process])
                    raise
                if code or not storage.exists(command.path):
                    raise ValueError(f"{command.module} failed with exit code {code}: {last_line(log)}; log: {log}")
            data.cut(runs)
            return


class Run:
    """One run on its way: training, then scoring.

    Attributes: `experiment`, `seed`, `digest`; `steps` done and `num_steps`; `state`: "waits", "runs", "done",
    "failed".
    """

    def __init__(self, study, experiment, seed, data, folder):
        self.study, self.experiment, self.seed, self._data = study, experiment, seed, data
        self.digest = study.digest(experiment, seed)
        self.folder = storage.join(folder, self.digest)
        self.log, self._scores = storage.join(self.folder, "log.txt"), storage.join(self.folder, "scores.json")
        self.num_steps, self.state = experiment.config.optim.num_steps, "waits"
        self.steps = self.first_step = steps_in(self.log)
        self._process, self._lock, self._exit = None, None, contextlib.ExitStack()

    @property
    def name(self):
        return f"{self.experiment.name}, seed {self.seed}"

    def begin(self, results, threads, backend):
        """Starts it, unless another process has it (it then waits on) or has finished it: then it is done."""
        with contextlib.ExitStack() as stack:
            self._lock = stack.enter_context(locked(storage.join(self.folder, "lock")))
            if self._lock is None:
                return
            self._exit = stack.pop_all()
        if self.digest in study_results.read(results):
            self._end("done")
            return
        self._threads, self._backend = threads, backend
        self._began, self._noted, self._spent = time.monotonic(), time.monotonic(), self._read_spent()
        self.state = "runs"
        self._next()

    def _next(self):
        """Starts the command that is due. Returns False where there is none."""
        trained, e = storage.join(self.folder, "trained"), self.experiment
        if not os.path.exists(trained):
            module, self._makes = "itit.train", trained
            arguments = [f"--flagfile={self.study.base}", *e.flags, "--keep_last=1", f"--seed={self.seed}"]
            arguments += [f"--workdir={self.folder}", *self._data.arguments(e, self.seed)]
            arguments += ["--eval_scenes"] if e.config.train.eval_every else []
        elif not os.path.exists(self._scores):
            module, self._makes = "tools.score_scenes", None
            arguments = [f"--workdir={self.folder}", f"--test={self._data.tests(e)}", f"--output={self._scores}"]
            arguments += [f"--num_test={self.study.test}"]
        else:
            return False
        self._process = start(module, [*arguments, *self._backend], self.log, self._threads, self._lock)
        return True

    def poll(self):
        """Looks what has become of it. Returns the line of results once there is one, else None."""
        self.steps = max(self.steps, steps_in(self.log))
        if time.monotonic() - self._noted > NOTE_SECONDS:
            self._note()
        code = self._process.poll()
        if code is None:
            return None
        self._note()
        if code:
            self.code = code
            self._end("failed")
            return None
        if self._makes:
            storage.write_bytes(self._makes, b"")
        elif not os.path.exists(self._scores):  # a tool that is content and has written nothing
            self.code = 0
            self._end("failed")
            return None
        return None if self._next() else self._line()

    def finish(self):
        """After its line is written."""
        self.steps = self.num_steps
        self._end("done")

    def halt(self):
        """What is to be stopped, or None."""
        return self._process if self.state == "runs" and self._process.poll() is None else None

    def leave(self):
        """Notes the time before the study itself ends."""
        if self.state == "runs":
            self._note()
            self._end("waits")

    def minutes(self):
        """Minutes so far, of this call and of those before it."""
        return self._spent + (time.monotonic() - self._began) / 60

    def minutes_a_step(self):
        """By this call, or None where it has not done enough yet."""
        done = self.steps - self.first_step
        return (time.monotonic() - self._began) / 60 / done if self.state == "runs" and done > 0 else None

    def _line(self):
        found = json.loads(storage.read_bytes(self._scores))
        return {
            "study": self.study.name, "experiment": self.experiment.name, "seed": self.seed, "digest": self.digest,
            "settings": self.experiment.settings, "data": self.study.data(self.experiment), **found,
            "minutes": round(self.minutes(), 2), "threads": self._threads,
        }  # fmt: skip

    def _note(self):
        self._noted = time.monotonic()
        storage.write_bytes(storage.join(self.folder, "minutes"), f"{self.minutes():.3f}".encode())

    def _read_spent(self):
        path = storage.join(self.folder, "minutes")
        return float(storage.read_bytes(path)) if os.path.exists(path) else 0.0

    def _end(self, state):
        self.state = state
        self._exit.close()


def run(runs, results, jobs, backend, pace, facts):
    """Runs all, `jobs` at a time, and adds a line to `results` for each that is done.

    Args:
      runs: list of `Run`.
      backend: flags for the commands.
      pace: `study_results.Pace`.
      facts: further entries of a line.

    Returns the runs that failed. Whatever ends it, no process is left behind.
    """
    threads = max(1, cores() // jobs)
    bar = tqdm.tqdm(total=sum(r.num_steps for r in runs), mininterval=1 if sys.stderr.isatty() else 30, bar_format=BAR)
    try:
        while any(r.state in ("waits", "runs") for r in runs):
            for r in runs:
                if r.state == "waits" and sum(other.state == "runs" for other in runs) < jobs:
                    r.begin(results, threads, backend)
                if r.state != "runs":
                    continue
                line = r.poll()
                if line:
                    study_results.append(results, line | facts | {"jobs": jobs})
                    r.finish()
                    bar.write(f"done: {r.name}: {summary(line)}, {line['minutes']:.1f} minutes", sys.stderr)
                elif r.state == "failed":
                    bar.write(
                        f"FAILED: {r.name}: exit code {r.code}: {last_line(r.log)}; log: {r.log}", file=sys.stderr
                    )
            count = {state: sum(r.state == state for r in runs) for state in ("runs", "waits", "failed")}
            said = f"{count['runs']} running, {count['waits']} waiting" + f", {count['failed']} FAILED" * (
                count["failed"] > 0
            )
            bar.set_postfix_str(f"{said}, ETA {left(runs, jobs, pace)}", refresh=False)
            bar.update(sum(r.num_steps if r.state in ("done", "failed") else r.steps for r in runs) - bar.n)
            time.sleep(POLL_SECONDS)
    finally:
        stop([process for process in (r.halt() for r in runs) if process])
        for r in runs:
            r.leave()
        bar.close()
    return [r for r in runs if r.state == "failed"]


def left(runs, jobs, pace):
    """The time to the end as h:mm, or "unknown"."""
    measured = [rate for rate in (r.minutes_a_step() for r in runs) if rate]
    total = 0.0
    for r in runs:
        if r.state in ("waits", "runs"):
            whole = pace.minutes(r.experiment)
            rate = r.minutes_a_step() or (whole and whole / r.num_steps) or (measured and sum(measured) / len(measured))
            if not rate:
                return "unknown"
            total += rate * (r.num_steps - r.steps)
    return clock(total / max(1, min(jobs, sum(r.state in ("waits", "runs") for r in runs))))


def clock(minutes):
    """Minutes as h:mm."""
    return f"{round(minutes) // 60}:{round(minutes) % 60:02d}"


def summary(line):
    """The exact scores of a line in a few words."""
    parts = [
        f"{split} {s['captions']['exact']:.0%}, {s['pictures']['exact']:.0%}" for split, s in line["scores"].items()
    ]
    return "captions and pictures right: " + "; ".join(parts)


def steps_in(log):
    """Steps done, as the training has printed last."""
    found = re.findall(rb"^step (\d+)/\d+ ", tail(log), re.MULTILINE)
    return int(found[-1]) if found else 0
