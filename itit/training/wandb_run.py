"""The metrics of a run on Weights & Biases, beside TensorBoard (`--wandb_project`)."""

import hashlib
import os

from absl import logging

from itit import storage
from itit.untrusted import shown

try:
    import wandb
except ModuleNotFoundError as error:
    raise ValueError(f"--wandb_project needs wandb (pip install -e .[wandb]): {error}") from None


class WandbRun:
    """Takes what `Metrics` writes. Where that fails, a warning says so, and the run goes on without.

    Args:
      project: WANDB_MODE=offline keeps it on the disk, in `workdir` where that is local.
      workdir: tells the run: the same one is gone on with.
      settings: flag -> value.

    Raises ValueError, one line, where it does not begin.
    """

    def __init__(self, project, workdir, settings):
        local = not storage.is_remote(workdir)
        place = os.path.abspath(workdir) if local else workdir
        try:
            self._run = wandb.init(
                project=project, name=os.path.basename(place.rstrip("/")), config=settings, resume="allow",
                id=hashlib.sha256(f"{project} {place}".encode()).hexdigest()[:16], dir=place if local else None,
                settings=wandb.Settings(console="off", disable_git=True, save_code=False),
            )  # fmt: skip
            # A run that was killed repeats steps, which wandb's own count of them would refuse.
            self._run.define_metric("*", step_metric="step")
        except Exception as error:  # of wandb, its service and the network
            raise ValueError(f"--wandb_project={project}: {_line(error)}") from None

    def scalars(self, step, values):
        self._write(lambda: self._run.log(values | {"step": step}))

    def image(self, step, tag, picture):
        self._write(lambda: self._run.log({tag: wandb.Image(picture), "step": step}))

    def text(self, step, tag, text):
        self._write(lambda: self._run.log({tag: wandb.Html(text, inject=False), "step": step}))

    def close(self):
        """Ends the run on Weights & Biases; all that it got is stored when this returns."""
        self._write(self._finish)
        self._run = None

    def _finish(self):
        self._run.finish()
        wandb.teardown()  # waits for the process that writes: `finish` may return before its last bytes

    def _write(self, work):
        if self._run is None:
            return
        try:
            work()
        except Exception as error:
            self._run = None
            logging.warning("Weights & Biases: %s: nothing more goes there from here on", _line(error))


def _line(error):
    return shown(" ".join(str(error).split())) or type(error).__name__
