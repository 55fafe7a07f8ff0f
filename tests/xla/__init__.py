"""Tests of PyTorch/XLA: those in `devices` run on virtual devices."""
