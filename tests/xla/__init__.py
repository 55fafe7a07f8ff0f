"""Tests on virtual XLA devices; `tests/test_xla.py` runs them, each number of devices in a process of its own."""
