"""Tests of `itit.scores`."""
