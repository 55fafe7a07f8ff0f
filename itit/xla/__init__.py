"""PyTorch/XLA as a backend: mesh, captured steps, programs traced ahead. `api.py` alone imports torch_xla."""
