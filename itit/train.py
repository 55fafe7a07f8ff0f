"""Trains ITIT: `python -m itit.train --flagfile=launch/flagfiles/NAME.cfg --workdir=DIR [--flag=value ...]`.

The last flag wins, so --flagfile goes first. A killed run is started again with the same command and goes on from its
newest checkpoint, bit for bit as if nothing had happened.
"""
# Read from top to bottom: resume, data, the loop; what is trained comes from itit/training/state.py.

import dataclasses
import shlex
import sys
import time

from absl import logging

from itit import flags, locks, samples, storage, text_encoders
from itit.backends.connect import connect
from itit.backends.processes import launched
from itit.checkpoint import store
from itit.checks import check_batches
from itit.config import ModelConfig, from_json, to_json, values_of
from itit.data.prefetch import prefetch
from itit.data.streams import Streams
from itit.optim import learning_rate
from itit.program import running
from itit.tasks import CYCLES, STREAMS, cost, of_stream
from itit.train_step import tasks, train_step
from itit.training import runs
from itit.training.evaluation import BEST, Evaluation
from itit.training.initial import initialise
from itit.training.interrupt import Interrupt, Interrupted
from itit.training.metrics import EARLY, Metrics, Silent
from itit.training.saver import Saver
from itit.training.skips import Skips
from itit.training.state import check_frozen, code, frozen, image_ids_of, load_state, make_state, vocabulary_of
from itit.training.taken import settle
from itit.training.watchdog import Watchdog

# ---------------------------------------------------------------------------------------------- resume


def resume(workdir, state, config, backend, order):
    """Loads the newest whole checkpoint, if there is one. Returns the number of steps done, and whether a signal has
    kept the run from the samples and scores that were due then.

    Args:
      order: what decides the order of the data now (see `Streams.order`); a change is allowed, and said.
    """

    def load(step, reader, meta):
        place = f"{workdir}, checkpoint of step {step}"
        saved = from_json(ModelConfig, meta["model"], place)
        for field in dataclasses.fields(ModelConfig):
            old, new = getattr(saved, field.name), getattr(config.model, field.name)
            if field.name != "preset" and old != new:
                raise ValueError(f"{place}: was trained with --{field.name}={old}, this run has {new}")
        check_frozen(vocabulary_of(config), meta, place)
        load_state(state, reader, meta, place, backend)

    found = store.restore(workdir, load, backend.hosts)
    if found is None:
        return 0, False
    step, _, meta = found
    tell_changes(meta.get("order", order), order, step)  # not in checkpoints of earlier versions
    logging.info("goes on from step %d", step)
    return step, meta.get("unseen", False)


def tell_changes(then, now, step):
    """Warns of all that has changed the order of the data (see `Streams.order`) since a checkpoint. A stream that was
    not there before, or is not now, changes nothing of the others."""
    names = then.keys() | now.keys()
    for stream in STREAMS:
        if (f"data of --{stream}" in then) != (f"data of --{stream}" in now):
            names -= {f"data of --{stream}", *(f"--{task}_batch" for task in of_stream(stream))}
    for name in sorted(names):
        old, new = then.get(name, "0"), now.get(name, "0")  # the batch of a task that is off is not there
        if old != new:
            logging.warning("%s was %s up to step %d, is %s now: the data go on in another order, some of this epoch's "
                            "again and some not at all", name, old, step, new)  # fmt: skip


# ---------------------------------------------------------------------------------------------- data


def open_streams(config, backend):
    """This host's share of the data. Raises ValueError where the batches do not divide, or hosts read the same rows."""
    parts = config.optim.num_microbatches
    check_batches(tasks(config, sys.maxsize), backend.num_devices, parts)
    streams = Streams(config, backend.hosts.index, backend.hosts.count, parts if backend.splits_parts else 1)
    logging.info("data:\n%s", streams.describe())
    backend.hosts.check_rows(streams.rows(0))
    return streams


def identity(config, streams, state):
    """What must be the same on all hosts: name -> text."""
    values = {f"--{name}": text for name, text in flags.texts(config).items()}
    return values | streams.identity() | frozen(state) | {"the code in itit/": code()}


def check_pictures(batch, state):
    """Raises ValueError where pictures come and nothing turns them into codes."""
    for key in batch:
        if key.endswith("/images") and state.vqgan is None:
            raise ValueError(
                f"--vqgan is empty: the records for {key.split('/')[0]} hold pictures, not ready image_ids"
            )


# ---------------------------------------------------------------------------------------------- the loop


def make_metrics(config, start):
    """TensorBoard, and Weights & Biases where it is asked for. Raises ValueError where that does not begin."""
    project, workdir, also = config.train.wandb_project, config.train.workdir, None
    if project:
        # Not everybody has it.
        from itit.training.wandb_run import WandbRun

        also = WandbRun(project, workdir, values_of(config))
    return Metrics(workdir, config.optim.num_steps, start, costs(config), also)


def write_samples(state, config, backend, batch, detokenizer, metrics, step):
    """Pictures, captions and cycles to TensorBoard."""
    with state.averaged():
        codes = {"image_ids": backend.sampler(image_ids_of, batch, state), "text_ids": batch["text_ids"]}
        translator = samples.Translator(state, config, backend, step)
        for name, picture in samples.collect(translator, codes, detokenizer).items():
            metrics.image(step, f"samples/{name}", picture)


def check_tasks(config, start):
    """Raises ValueError where a run has nothing to do at its first step."""
    if start < config.optim.num_steps and not tasks(config, start):
        waits = " and ".join(f"--{name}_warmup_steps={getattr(config.objective, f'{name}_warmup_steps')}"
                             for name in tasks(config, sys.maxsize))  # fmt: skip
        raise ValueError(f"step {start} has no task: {waits}; without a batch of another task one must be {start} or "
                         "less")  # fmt: skip


def plan(config, start, end):
    """What a call does, in a line: its steps, and the samples of each task, with the step that a cycle joins at."""
    joins = {cycle: getattr(config.objective, f"{cycle}_warmup_steps") for cycle in CYCLES}
    last = tasks(config, sys.maxsize)
    said = [f"{name} {size}" + (f" from step {joins[name]}" if joins.get(name) else "") for name, size in last.items()]
    return f"steps {start} to {end} of {config.optim.num_steps}; samples a step: {', '.join(said)}"


def costs(config):
    """What steps cost, as `Metrics` takes it: the cycles join at theirs."""
    joins = sorted({0, *(getattr(config.objective, f"{name}_warmup_steps") for name in CYCLES)})
    return [(step, cost(config, tasks(config, step)) or 1) for step in joins]


def what_next(config, step):
    """The next command to type, in a line."""
    if step < config.optim.num_steps:
        return "the same command goes on"
    missing = [f"--{name}=PATH" for name in ("vqgan", "vocabulary") if not getattr(config.data, name)]
    return " ".join([f"to try it: python -m tools.demo --workdir={shlex.quote(config.train.workdir)}", *missing])


def keep_settings(config, start):
    """Writes the settings down, beside the best checkpoint, too, and says which have changed."""
    workdir = config.train.workdir
    if changed := runs.keep_settings(workdir, config, start):
        told = ", ".join(f"--{name} {old} -> {new}" for name, (old, new) in changed.items())
        logging.warning("settings that were others up to step %d: %s", start, told)
    if config.train.keep_best:
        runs.copy_settings(workdir, storage.join(workdir, BEST))


def can_sample(config, state):
    """Samples need a tokenizer for each side; says once what is missing."""
    if not config.train.sample_every:
        return False
    missing = [flag for flag, given in (("vqgan", state.vqgan), ("vocabulary", config.data.vocabulary)) if not given]
    for flag in missing:
        logging.warning("no sample pictures: --%s is empty", flag)
    return not missing


class Looks:
    """Samples and scores of a run: when they are due, and made."""

    def __init__(self, config, state, backend, streams, meta):
        self._config, self._state, self._backend = config, state, backend
        self._batch = None
        if can_sample(config, state):
            self._batch = backend.to_device(streams.sample_batch(config.train.num_samples), whole=True)
            self._detokenizer = text_encoders.tokenizer(config)
        self._evaluation = Evaluation(config, state, backend, streams, meta)

    def due(self, step):
        """Whether any are due after so many steps."""
        return self._samples_due(step) or self._evaluation.due(step)

    def _samples_due(self, step):
        if not step or self._batch is None:
            return False
        return step % self._config.train.sample_every == 0 or step == self._config.optim.num_steps

    def make(self, step, metrics):
        """Draws and scores what is due. Returns whether a signal has cut it short."""
        try:
            if self._samples_due(step):
                write_samples(self._state, self._config, self._backend, self._batch, self._detokenizer, metrics, step)
            if self._evaluation.due(step):
                self._evaluation.run(step, metrics)
        except Interrupted:
            return True
        return False


def run(config, places=None):
    """Trains until num_steps (or stop_after_steps of this call). Returns the exit code.

    Args:
      config: still to be settled.
      places: flag -> the flagfile that it stands in.
    """
    started, workdir, t = time.monotonic(), config.train.workdir, config.train
    with launched(t) as processes:
        if not workdir:
            raise ValueError("--workdir is empty: give the folder of checkpoints and logs")
        if storage.is_remote(workdir) and t.profile_step >= 0:
            raise ValueError(f"--profile_step={t.profile_step}: profiles are written to local folders, not {workdir}")
        config = settle(config, places, runs.sizes(workdir, t.init_from))
        backend = connect(t, processes)
        with locks.of_run(workdir, backend.hosts):
            return _run(config, backend, started)


def begin(config, backend, streams):
    """What a run begins with, or goes on from, and the first that is written of it.

    Returns the State, the number of steps done, whether a signal has kept the run from samples and scores that were due
    then, and what its checkpoints say of it.
    """
    workdir, vocabulary, order = config.train.workdir, vocabulary_of(config), streams.order()
    state = make_state(config, backend)
    backend.hosts.check_same(identity(config, streams, state))
    count = sum(p.numel() for p in state.model.parameters())
    logging.info("ITIT-%s: %.1f M parameters on %s, %s", config.model.preset, count / 1e6, backend,
                 config.train.compute_dtype)  # fmt: skip
    start, unseen = resume(workdir, state, config, backend, order)
    check_tasks(config, start)
    if config.train.init_from and not start:
        initialise(config.train.init_from, state, backend, vocabulary)
    backend.pack(state)
    storage.make_dirs(workdir)
    if backend.hosts.leads:
        storage.remove_rests(workdir)
        keep_settings(config, start)
    meta = {"model": to_json(config.model), "frozen": frozen(state) | vocabulary, "order": order}
    return state, start, unseen, meta


def _run(config, backend, started):
    interrupt, workdir, t = Interrupt(), config.train.workdir, config.train
    streams = open_streams(config, backend)
    state, start, unseen, meta = begin(config, backend, streams)
    step, end = start, config.optim.num_steps
    if t.stop_after_steps:
        end = min(end, start + t.stop_after_steps)
    logging.info("%s", plan(config, start, end))
    looks = Looks(config, state, backend, streams, meta)
    metrics = make_metrics(config, start) if backend.hosts.leads else Silent()
    watchdog = Watchdog(t.watchdog_factor, t.watchdog_seconds, t.log_every)
    skips = Skips(workdir, streams.rows, backend.hosts.index, config.optim.max_skipped)
    batches = prefetch(streams, 0 if t.overfit_batch else start, config.data.prefetch)
    batch, waited, num_samples = None, 0.0, 0

    backend.stop_by(interrupt)
    if unseen or not start:
        looks.make(start, metrics)
    stop = interrupt.stops(backend, 0, t.log_every)
    with Saver(workdir, meta, t.keep_last, t.keep_every, backend.hosts) as saver:
        while step < end and not stop:
            active, rate = tasks(config, step), learning_rate(step, config.optim)
            # Over-fitting repeats its masks and its noise, too, so that the loss has a floor to reach.
            data_step = 0 if t.overfit_batch else step
            with watchdog.step(tuple(active)):
                with backend.watch(workdir if step == t.profile_step else ""):
                    if batch is None or not t.overfit_batch:
                        batch = backend.to_device(next(batches))
                        check_pictures(batch, state)
                        waited += batches.wait_seconds
                    noises = [backend.noise(t.seed, data_step, part) for part in range(config.optim.num_microbatches)]
                    with running(backend.run):
                        values = backend.whole(train_step, state, batch, noises, rate, config, active)
                skips.note(data_step, values)
                step += 1
                num_samples += sum(active.values())
                if step == start + 1:
                    float(values["loss"])  # waits for it
                    metrics.scalars(step, {"time/to_first_step": time.monotonic() - started, **backend.measures()})
                if step % t.log_every == 0 or step - start in EARLY or step == end:
                    values |= {"learning_rate": rate}
                    values |= {"data/damaged": streams.num_bad, "data/cut_texts": streams.num_cut}
                    metrics.progress(step, values | {"skipped": skips.read()}, num_samples, waited)
                    waited, num_samples = 0.0, 0
                stop = interrupt.stops(backend, step, t.log_every)
            unseen = False
            if looks.due(step):
                unseen = stop or looks.make(step, metrics)
                stop = stop or interrupt.stops(backend, step, t.log_every)
            if step % t.checkpoint_every == 0 or step == end or stop:
                saver.save(step, backend.owned(state.tensors()), unseen=unseen)
            saver.check()
    batches.close()
    metrics.close()
    backend.hosts.close()
    if code := interrupt.ended(stop, step, workdir, backend.hosts.says):
        return code
    logging.info("done: step %d of %d", step, config.optim.num_steps)
    if backend.hosts.leads:
        logging.info("%s", what_next(config, step))
    return 0


def main(_):
    sys.exit(run(flags.from_flags(), flags.places()))


if __name__ == "__main__":
    flags.define()
    flags.run_main(main)
