"""Tests of `tools.scoring`, with its commands."""
