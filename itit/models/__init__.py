"""Networks, forward only: no loss, sampling, reading or device."""

from itit.models.itit import Encoded, ITITModel, Text, encode_text
from itit.models.precision import cast_once, weights_cast, weights_to_cast
from itit.models.t5 import T5Encoder
from itit.models.vqgan import VQGAN

__all__ = ["ITITModel", "VQGAN", "Encoded", "T5Encoder", "Text", "cast_once", "encode_text", "load",
           "weights_cast", "weights_to_cast"]  # fmt: skip


def load(path):
    """ITIT from what tools.export wrote, ready to use on the CPU. ValueError, one line (see checkpoint/weights.py)."""
    from itit.checkpoint.weights import load_itit  # reading needs more than torch; the networks do not

    return load_itit(path)
