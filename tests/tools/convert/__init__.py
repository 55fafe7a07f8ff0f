"""Tests of `tools.convert`, with its commands."""
