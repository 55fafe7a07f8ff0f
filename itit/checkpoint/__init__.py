"""Tensors in files: checkpoints of a run, and folders of weights."""
