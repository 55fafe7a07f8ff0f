"""Tests of `tools.tpu`, with its commands."""
