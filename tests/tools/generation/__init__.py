"""Tests of `tools.generation`, with its commands."""
