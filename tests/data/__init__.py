"""Tests of `itit.data`."""
