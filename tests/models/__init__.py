"""Tests of `itit.models`."""
