"""Offline programs: `python -m tools.NAME`."""
