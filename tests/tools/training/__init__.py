"""Tests of `tools.training`, with its commands."""
