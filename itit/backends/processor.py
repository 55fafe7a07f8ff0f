"""What a process on a processor sets before torch is loaded: how threads wait, and how memory is kept.

Imported first by `itit`, `tools` and the tests. What the user has set in the environment stays as it is.
"""

import ctypes
import os

# Turns that a thread of GNU's OpenMP, which torch brings along, spins before it sleeps. By default some 300,000, in
# which it holds a core that the thread it waits for may need: beside one other busy process quickstart made 0.2 to 1.3
# steps/s on two cores. With 1,000 it makes 2.5, and 4.5 as before where the machine is free; asleep at once, 3.3.
SPIN_COUNT = "1000"
# glibc gives the large buffers of a step back to the kernel and asks for them again at once: a third of the time of a
# step, all of it page faults. Kept instead. Names of the environment's variables, numbers of `mallopt`, bytes.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, (1 << 31) - 1),
    "MALLOC_TOP_PAD_": (-2, 1 << 28),
}


def tune():
    """Does both. Other C libraries than glibc are left alone."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, (parameter, size) in MALLOC.items():
        if mallopt is not None and name not in os.environ:
            mallopt(parameter, size)


tune()
