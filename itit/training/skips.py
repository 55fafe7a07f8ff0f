"""Updates that were skipped: of which rows, for whoever looks into it, and whether it is time to stop."""

import json

from absl import logging

from itit import storage

FOLDER = "skipped"


class Skips:
    """What became of the updates of a run. Nothing waits for the device until `read`.

    Args:
      rows: step (from 0) -> task -> places of this host's rows, as `Streams.rows`.
      host_index: of this host, which writes files of its own.
      max_in_row: updates skipped one after the other that end the run.

    Files: workdir/skipped/step_00001234-host_00000.json: the step (from 0), loss, norm of the gradient, rows.
    """

    def __init__(self, workdir, rows, host_index, max_in_row):
        self._folder, self._rows, self._host_index = storage.join(workdir, FOLDER), rows, host_index
        self._max_in_row, self._in_row, self._noted = max_in_row, 0, []

    def note(self, step, values):
        """Keeps what `train_step` returned for a step, numbered from 0."""
        self._noted.append((step, *(values[name] for name in ("skipped", "loss", "grad_norm"))))

    def read(self):
        """How many of the updates noted since the last call were skipped; writes them down.

        Raises ValueError, one line, after too many in a row.
        """
        noted, self._noted = self._noted, []
        count = 0
        for step, skipped, loss, norm in noted:
            self._in_row = self._in_row + 1 if float(skipped) else 0
            if self._in_row:
                count += 1
                self._write(step, float(loss), float(norm))
            if self._in_row >= self._max_in_row:
                raise ValueError(
                    f"{self._in_row} updates in a row were skipped, the last of step {step} (from 0): loss "
                    f"{float(loss)}, gradient norm {float(norm)}; their rows are in {self._folder}; a "
                    f"lower --learning_rate may help (--max_skipped={self._max_in_row})"
                )
        return count

    def _write(self, step, loss, norm):
        logging.warning("step %d (from 0): update skipped: loss %g, gradient norm %g", step, loss, norm)
        rows = {task: places.tolist() for task, places in self._rows(step).items()}
        record = {"step": step, "loss": str(loss), "grad_norm": str(norm), "rows": rows}  # JSON has no NaN
        storage.make_dirs(self._folder)
        path = storage.join(self._folder, f"step_{step:08d}-host_{self._host_index:05d}.json")
        storage.write_bytes(path, json.dumps(record).encode())
