"""Tests of the files on top of `itit`."""
