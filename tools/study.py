"""`python -m tools.study NAME[,NAME...]`: runs a named set of experiments on Scenes, and reports them beside the paper.

NAME is a file launch/flagfiles/mini/NAME.study, or a path of one. Data, image tokenizer and vocabulary are made once in
--output and shared by all studies there. Each run (an experiment with a seed) has its own folder; once scored, it is a
line of results.jsonl, and is not run again by any study with that file. Killed at any moment and called again, it goes
on where it was. Exit code 1 where a run has failed; the others go on without it.
"""

import os
import signal
import subprocess
import sys

from absl import flags

from itit import storage
from itit.flags import run_main, take_word
from tools.studies import study_file, study_report, study_results, study_run
from tools.studies.processes import cores
from tools.studies.study_data import Data


def commit():
    """The commit of this code, with a + where files differ from it; "unknown" outside a repository."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + "+" * bool(changed.stdout)


def to_do(studies, done):
    """The runs that have no line yet, each once: digest -> (study, experiment, seed).

    First the first seed of every experiment, then the second: what is done early tells of all.
    """
    found = {}
    ordered = [(e.seeds.index(seed), study, e, seed) for study in studies for e, seed in study.runs]
    for _, study, experiment, seed in sorted(ordered, key=lambda one: one[0]):
        digest = study.digest(experiment, seed)
        if digest not in done:
            found.setdefault(digest, (study, experiment, seed))
    return found


def tell(studies, todo, done, pace, jobs):
    """Prints what would run, and how long."""
    said, minutes = set(), []
    for study in studies:
        print(f"{study.path}: {study.title}")
        for experiment, seed in study.runs:
            digest, expected = study.digest(experiment, seed), pace.minutes(experiment)
            state = f"{experiment.config.optim.num_steps} steps"
            if digest in done:
                state = f"done, step {done[digest]['step']}, {done[digest]['minutes']:.1f} minutes"
            elif digest in said:
                state = "the same as one above"
            else:
                minutes.append(expected)
                state += "" if expected is None else f", about {expected:.1f} minutes"
            said.add(digest)
            print(f"  {experiment.name}, seed {seed}: {state}")
    if not todo:
        print("nothing to do: all runs have their line")
    elif None in minutes:
        print(f"{len(todo)} runs to do, {jobs} at a time; no line of results tells yet how long they take")
    else:
        hours = study_run.clock(sum(minutes) / min(jobs, len(todo)))
        print(f"{len(todo)} runs to do, {jobs} at a time: about {hours} (hours:minutes)")


def carry_out(todo, results, flag, jobs, pace):
    """Makes the data and runs all. Returns the runs that failed."""
    backend = [f"--backend={flag.backend}"] if flag.backend != "auto" else []
    folder, threads, runs = storage.join(flag.output, "data"), max(1, cores() // jobs), []
    for study in dict.fromkeys(study for study, _, _ in todo):
        mine = [(experiment, seed) for owner, experiment, seed in todo if owner is study]
        data = Data(study, folder)
        study_run.make_data(data, mine, storage.join(folder, "log.txt"), threads, backend)
        runs += [study_run.Run(study, *one, data, storage.join(flag.output, "runs")) for one in mine]
    return study_run.run(runs, results, jobs, backend, pace, {"commit": commit()})


def main(_):
    flag = flags.FLAGS
    paths = [study_file.find(name) for name in NAMES.split(",")]
    studies = [study_file.read(path) for path in paths]
    results = flag.results or storage.join(flag.output, "results.jsonl")
    done = study_results.read(results)
    pace, todo = study_results.Pace(done), to_do(studies, done)
    jobs = flag.jobs or min(cores(), max(1, len(todo)))
    if flag.dry_run:
        tell(studies, todo, done, pace, jobs)
        return
    failed = []
    if todo and not flag.report_only:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        print(f"{len(todo)} of {sum(len(study.runs) for study in studies)} runs to do, {jobs} at a time")
        failed = carry_out(list(todo.values()), results, flag, jobs, pace)
    report = study_report.write(os.path.dirname(paths[0]), results)
    print(f"results: {results}; report: {report}")
    if failed:
        print(f"{len(failed)} runs failed:", *(f"  {r.name}: {r.log}" for r in failed), sep="\n", file=sys.stderr)
        sys.exit(1)


def define_flags():
    flags.DEFINE_string("output", "runs/study", "Folder of data and runs, shared by all studies.")
    flags.DEFINE_string("results", "", "File of results; by default OUTPUT/results.jsonl. The report lies beside it.")
    flags.DEFINE_integer("jobs", 0, "Runs at a time; 0: one a core.", lower_bound=0)
    flags.DEFINE_enum("backend", "auto", ["auto", "cpu", "cuda"], "Where they run.")
    flags.DEFINE_boolean("dry_run", False, "Only say what would run, and how long.")
    flags.DEFINE_boolean("report_only", False, "Only make the report again.")


if __name__ == "__main__":
    NAMES = take_word()
    define_flags()
    run_main(main)
