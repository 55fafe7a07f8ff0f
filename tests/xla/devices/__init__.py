"""Tests on virtual XLA devices; `tests/xla/test_xla.py` runs them, each number of devices in a process of its own."""
