"""Offline programs: `python -m tools.NAME`."""

import itit  # noqa: F401 (its `processor`, before torch)
