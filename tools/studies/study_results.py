"""results.jsonl: one line a finished run, appended by whoever finishes one; and what earlier lines say of the time.

A line: `study`, `experiment` and `seed` that it was run for, `digest` (of settings, data and seed: the run itself),
`settings`, `data`, `step`, `scores`, `curves`, `minutes`, `jobs`, `device`, `commit`, `version`.
"""

import fcntl
import json
import os

from itit.tasks import CYCLES, TASKS

VERSION = 1


def read(path):
    """digest -> line, the last one of each. A line that a killed process has left half is passed over.

    Raises ValueError, one line, for a file that is something else.
    """
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as file:
        text = file.read()
    *whole, _ = text.split("\n")  # after the last line break there is nothing, or half a line
    found = {}
    for number, line in enumerate(whole, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            found[value["digest"]] = value
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}:{number}: no line of results; remove it") from None
    return found


def append(path, line):
    """Adds a line, whole or not at all, also where several processes do. What a killed one left half is cut off."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def kind(settings):
    """What runs of about the same time a step share: the batches and the cycles."""
    names = [*(f"{task}_batch" for task in TASKS), *CYCLES, "embed_dim", "depth", "image_decoder_depth"]
    return tuple(str(settings.get(name)) for name in names)


class Pace:
    """Minutes that runs take, by the lines of others on a device of the same kind. `results`: digest -> line."""

    def __init__(self, results):
        self._rates = {}  # kind -> minutes a step, one a run
        for line in results.values():
            self._rates.setdefault(kind(line["settings"]), []).append(line["minutes"] / max(1, line["step"]))

    def minutes(self, experiment):
        """Minutes of one run, or None where no line tells. Of other kinds than those seen, the mean of all."""
        mine = self._rates.get(kind(experiment.settings)) or [rate for rates in self._rates.values() for rate in rates]
        return experiment.config.optim.num_steps * sum(mine) / len(mine) if mine else None
