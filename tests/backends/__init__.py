"""Tests of `itit.backends`."""
