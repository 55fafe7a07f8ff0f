"""Collected only where virtual devices are asked for: TensorFlow and torch_xla do not share a process in this order."""

import os

collect_ignore_glob = [] if os.environ.get("ITIT_XLA_TESTS") else ["test_*.py"]
