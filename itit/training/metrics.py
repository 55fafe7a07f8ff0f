"""TensorBoard and the progress lines of a run.

Keys are the same on TensorBoard and in the code: "loss", "loss/t2i", "grad_norm", "learning_rate". Events lie in
workdir/tensorboard; for a workdir on gs:// they are written to a temporary folder and copied up.
"""

import collections
import os
import resource
import sys
import tempfile
import time
import types

# TensorBoard prefers TensorFlow's file system where that is installed, and loading it takes seconds and memory that a
# run of ready ids does not need. A module of this name is TensorBoard's own switch to its built-in replacement.
sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))

from absl import logging  # noqa: E402
from tensorboard.backend.event_processing import event_accumulator  # noqa: E402
from torch.utils import tensorboard  # noqa: E402

from itit import storage  # noqa: E402
from itit.console import listed, say  # noqa: E402

FOLDER = "tensorboard"
FLUSH_SECONDS = 30
WINDOW = 20
EARLY = (1, 10)  # steps of a call that are told, too, whatever --log_every says
WORTH_A_WORD = 0.05  # of the time, spent waiting for input


class Metrics:
    """Writes what a run measures. A context manager; leaving it writes out what is pending.

    Where that fails, because the disk is full, say, a warning says so, and the run goes on without curves.

    Args:
      workdir: local or gs:// folder.
      num_steps: steps of the whole run, for the time left.
      start_step: steps done before this call; later events of an earlier, killed call disappear from the curves.
      costs: (step, what it and those after it cost, beside others), in the order of the steps.
      also: takes the same scalars, pictures and texts; or None.
    """

    def __init__(self, workdir, num_steps, start_step=0, costs=((0, 1.0),), also=None):
        self._num_steps, self._costs, self._also = num_steps, costs, also
        self._remote = storage.join(workdir, FOLDER) if storage.is_remote(workdir) else None
        self._folder = tempfile.mkdtemp() if self._remote else storage.join(workdir, FOLDER)
        purge_step = start_step + 1 if start_step else 0  # the scores of an untrained model are at step 0
        self._writer = tensorboard.SummaryWriter(self._folder, purge_step=purge_step, flush_secs=FLUSH_SECONDS)
        self._uploaded = time.monotonic()
        self._samples = self._waited = 0
        # Points (time, step, samples, seconds waited) that rates are taken between.
        self._points = collections.deque([(time.monotonic(), start_step, 0, 0.0)], WINDOW + 1)
        self._warm = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def scalars(self, step, values):
        """Writes {key: number} (floats or tensors of one element)."""
        values = {key: float(value) for key, value in values.items()}
        for key, value in values.items():
            self._write("add_scalar", key, value, step)
        if self._also:
            self._also.scalars(step, values)

    def image(self, step, tag, picture):
        """Writes a picture, uint8 [height, width, 3]."""
        self._write("add_image", tag, picture, step, dataformats="HWC")
        if self._also:
            self._also.image(step, tag, picture)

    def text(self, step, tag, text):
        """Writes a text; TensorBoard shows it as Markdown."""
        self._write("add_text", tag, text, step)
        if self._also:
            self._also.text(step, tag, text)

    def progress(self, step, values, num_samples, wait_seconds):
        """Writes `values` and the rates, and prints what a person watches: see `_lines`.

        Rates are means over the last 20 calls, so that they follow the run; the first call of a run, with its start-up
        costs, counts only until there is a second, and calls before the steps began to cost what they do now only until
        there are two since. Of steps to come that cost more, the time left counts as many times more.

        Args:
          step: steps done, in all calls together.
          values: {key: number}; "loss" and "loss/*" are printed, all are written.
          num_samples: pictures and texts trained on since the call before this one.
          wait_seconds: time since then in which the step waited for its input.
        """
        values = {key: float(value) for key, value in values.items()}
        self._samples += num_samples
        self._waited += wait_seconds
        self._points.append((time.monotonic(), step, self._samples, self._waited))
        if not self._warm and len(self._points) == 3:
            self._points.popleft()
            self._warm = True
        since = max(first for first, _ in self._costs if first < step)
        while len(self._points) > 2 and self._points[0][1] < since <= self._points[-2][1]:
            self._points.popleft()
        seconds, steps, samples, waited = (
            new - old for new, old in zip(self._points[-1], self._points[0], strict=True)
        )
        seconds = max(seconds, 1e-9)
        done, left = self._cost(step - steps, step), self._cost(step, self._num_steps)
        rates = {
            "rate/steps_per_second": steps / seconds,
            "rate/samples_per_second": samples / seconds,
            "rate/input_wait": waited / seconds,
            "host_memory_gib": host_memory() / 2**30,
        }
        self.scalars(step, values | rates)
        say(self._lines(step, values, rates, clock(seconds / done * left) if steps else "unknown"))
        if self._remote and time.monotonic() - self._uploaded > FLUSH_SECONDS:
            self._upload()

    def close(self):
        """Writes out what is pending."""
        self._write("close")
        if self._remote:
            self._upload()
        if self._also:
            self._also.close()

    def _write(self, method, *args, **options):
        """Calls TensorBoard's writer, which raises, too, what its thread has met since the call before."""
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*args, **options)
        except OSError as error:
            self._writer = None
            logging.warning("%s: %s: no more curves from here on", self._folder, error)

    def _cost(self, first, end):
        """Of the steps from `first` to before `end`."""
        ends = [step for step, _ in self._costs[1:]] + [end]
        return sum(max(0, min(last, end) - max(step, first)) * cost
                   for (step, cost), last in zip(self._costs, ends, strict=True))  # fmt: skip

    def _lines(self, step, values, rates, left):
        """Where the run is, how fast, how long it will take, its loss; indented below what that is the sum of, and
        whether it waits for its data. Within 80 columns; all else is in TensorBoard."""
        rate, waits = rates["rate/steps_per_second"], rates["rate/input_wait"]
        head = [f"step {step}/{self._num_steps}", f"{rate:.3g} steps/s", f"ETA {left}"]
        head += [f"loss {values['loss']:.3f}"] if "loss" in values else []
        words = [f"{key.removeprefix('loss/')} {value:.3f}" for key, value in values.items() if key.startswith("loss/")]
        words += [f"input wait {waits:.0%}"] if waits >= WORTH_A_WORD else []
        return "\n".join([" | ".join(head), *([listed(words)] if words else [])])

    def _upload(self):
        """Copies the event files to gs://, whose objects cannot grow."""
        self._write("flush")
        try:
            for name in storage.list_dir(self._folder):
                with storage.open(storage.join(self._folder, name)) as file:
                    storage.write_bytes(storage.join(self._remote, name), file.read())
        except OSError as error:
            logging.warning("%s: curves not written, for now: %s", self._remote, error)
        self._uploaded = time.monotonic()


class Silent:
    """Takes what `Metrics` takes and writes nothing: for the hosts of a run but one."""

    def scalars(self, step, values):
        pass

    def image(self, step, tag, picture):
        pass

    def progress(self, step, values, num_samples, wait_seconds):
        pass

    def close(self):
        pass


def curves(workdir):
    """What a run has written: key -> (list of steps, list of values), from the events in a local workdir, if any."""
    if not storage.list_dir(storage.join(workdir, FOLDER)):
        return {}
    events = event_accumulator.EventAccumulator(storage.join(workdir, FOLDER), {event_accumulator.SCALARS: 0})
    events.Reload()
    points = {key: events.Scalars(key) for key in events.Tags()["scalars"]}
    return {key: ([p.step for p in some], [p.value for p in some]) for key, some in points.items()}


def clock(seconds):
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def host_memory():
    """Resident bytes of this process; where the system does not tell (no /proc), the most there ever were."""
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
