"""What the tests of faults share: how many rounds, and a line on what came of them.

A short form runs in the suite; `tests/faults.sh` sets ITIT_FAULT_ROUNDS for the long one and collects the lines.
"""

import os
import time

LONG = "ITIT_FAULT_ROUNDS" in os.environ


def rounds(short):
    """Rounds of a test: ITIT_FAULT_ROUNDS, else the short form's."""
    return int(os.environ.get("ITIT_FAULT_ROUNDS", short))


def report(fault, rounds, lost, began, note=""):
    """Prints a line a fault, and appends it to the file ITIT_FAULT_REPORT. `began`: of time.monotonic()."""
    line = f"{fault}: {rounds} rounds, {lost} lost, {time.monotonic() - began:.0f} s" + (f" ({note})" if note else "")
    print(line)
    if os.environ.get("ITIT_FAULT_REPORT"):
        with open(os.environ["ITIT_FAULT_REPORT"], "a") as file:
            file.write(line + "\n")
