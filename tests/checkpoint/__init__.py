"""Tests of `itit.checkpoint`."""
