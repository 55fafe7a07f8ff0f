"""The loop of the trainers among the tools: resume, data, steps, metrics, checkpoints, signals, by ITIT's own parts."""

import math
import time

from itit import locks, storage
from itit.checkpoint import store
from itit.console import say
from itit.data.prefetch import prefetch
from itit.training.interrupt import Interrupt
from itit.training.metrics import EARLY, Metrics, Silent
from itit.training.saver import Saver
from itit.training.state import fill_state

PREFETCH = 2


def resume(workdir, state, backend, flag_values):
    """Loads the newest whole checkpoint, if there is one. Returns the number of steps done.

    Raises ValueError where it was made with other flags.
    """

    def load(step, reader, meta):
        for name, value in flag_values.items():
            if meta["flags"].get(name) != value:
                raise ValueError(f"--{name}={value}: the run in {workdir} began with {meta['flags'].get(name)}; "
                                 "name another --output or remove that one")  # fmt: skip
        fill_state(state, reader, f"{workdir}, checkpoint of step {step}", backend)

    found = store.restore(workdir, load, backend.hosts)
    if found is None:
        return 0
    if backend.hosts.leads:
        say(f"carrying on from step {found[0]}")
    return found[0]


def train(run, num_steps, state, backend, source, train_step, show, flag_values):
    """Trains to `num_steps` from the newest checkpoint.

    Args:
      run: TrainConfig.
      state: its `tensors()` is all that a resumed run needs.
      source: `batch(step)` gives name -> this host's rows.
      train_step: (batch on the devices, step) -> metrics, "loss" among them.
      show: (metrics writer, step) is called every `run.sample_every` steps and at the end.
      flag_values: name -> value; a run goes on with the same ones only.

    Returns:
      0, or the exit code of a run that was told to stop.
    """
    with locks.of_run(run.workdir, backend.hosts):
        return _train(run, num_steps, state, backend, source, train_step, show, flag_values)


def _train(run, num_steps, state, backend, source, train_step, show, flag_values):
    started, interrupt = time.monotonic(), Interrupt()
    if backend.hosts.leads:
        storage.remove_rests(run.workdir)
    backend.hosts.check_same({name: str(value) for name, value in flag_values.items()})
    start = step = resume(run.workdir, state, backend, flag_values)
    end = min(num_steps, start + run.stop_after_steps) if run.stop_after_steps else num_steps
    metrics = Metrics(run.workdir, num_steps, start) if backend.hosts.leads else Silent()
    batches, waited, num_samples = prefetch(source, start, PREFETCH), 0.0, 0
    stop = interrupt.stops(backend, 0, run.log_every)
    with Saver(run.workdir, {"flags": flag_values}, run.keep_last, run.keep_every, backend.hosts) as saver:
        while step < end and not stop:
            with backend.watch(run.workdir if step == run.profile_step else ""):
                batch = backend.to_device(next(batches))
                waited += batches.wait_seconds
                values = train_step(batch, step)
            step += 1
            num_samples += len(next(iter(batch.values())))
            if step == start + 1:
                float(values["loss"])  # waits for it
                metrics.scalars(step, {"time/to_first_step": time.monotonic() - started, **backend.measures()})
            if step % run.log_every == 0 or step - start in EARLY or step == end:
                check_finite(values, step)
                metrics.progress(step, values, num_samples, waited)
                waited, num_samples = 0.0, 0
            if run.sample_every and (step % run.sample_every == 0 or step == num_steps):
                show(metrics, step)
            stop = interrupt.stops(backend, step, run.log_every)
            if step % run.checkpoint_every == 0 or step == end or stop:
                check_finite(values, step)
                saver.save(step, backend.owned(state.tensors()))
            saver.check()
    batches.close()
    metrics.close()
    backend.hosts.close()
    return interrupt.ended(stop, step, run.workdir)


def check_finite(values, step):
    """Raises ValueError where the loss is not a number any more."""
    if not math.isfinite(float(values["loss"])):
        raise ValueError(f"loss is {float(values['loss'])} at step {step}; try a lower --learning_rate")
