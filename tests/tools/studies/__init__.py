"""Tests of `tools.studies`, with its commands."""
