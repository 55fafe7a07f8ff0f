"""Tests of `itit.training`."""
