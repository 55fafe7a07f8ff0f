"""Tests of `tools/spread`."""
