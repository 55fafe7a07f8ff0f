"""ITIT: vision-language training on paired and unpaired data with cycle consistency (arXiv:2310.03734)."""

__version__ = "0.1.0"
