"""Where a run computes: one processor, one GPU, or all chips by PyTorch/XLA (`itit.xla`)."""
