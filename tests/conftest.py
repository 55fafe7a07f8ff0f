"""Read before every test: two threads, set before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
