"""Tests of `tools.timing`, with its commands."""
