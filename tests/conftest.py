"""Read before every test: two threads, set before torch is imported, and the fixtures of the TPU scripts."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")
pytest.register_assert_rewrite("tests.cloud")

from tests.cloud import cloud, ready, repository  # noqa: E402, F401
