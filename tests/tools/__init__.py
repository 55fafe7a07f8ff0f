"""Tests of the tools, by the same rooms."""
