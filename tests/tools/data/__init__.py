"""Tests of `tools.data`, with its commands."""
