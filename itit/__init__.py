"""ITIT: vision-language training on paired and unpaired data with cycle consistency (arXiv:2310.03734)."""

from itit import usage
from itit.backends import processor  # noqa: F401 (before torch, whoever imports it)

__version__ = "0.1.0"
usage.prepare()


def __getattr__(name):
    """`itit.ITIT`, a trained model to use. Loaded when it is asked for: the settings alone need no torch."""
    if name != "ITIT":
        raise AttributeError(f"module 'itit' has no attribute {name!r}")
    from itit.pretrained import ITIT

    return ITIT
