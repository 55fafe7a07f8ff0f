"""What tests of the TPU compiler share: the mark that skips them where there is none, and programs from HLO text."""

import os
import subprocess
import sys

import pytest

from itit.xla.sharding import Program
from tools.tpu.tpu_compiler import check_installed

_TO_PROTO = """
import sys
from jax._src.lib import xla_client
module = xla_client._xla.hlo_module_from_text(sys.stdin.read())
sys.stdout.buffer.write(module.as_serialized_hlo_module_proto())
"""


def missing():
    try:
        check_installed()
    except ValueError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(missing()), reason=missing())


def program(text, inputs, outputs, **fields):
    """A Program of HLO text, its shardings as (shape, spec) each."""
    ended = subprocess.run([sys.executable, "-c", _TO_PROTO], input=text.encode(), stdout=subprocess.PIPE, check=True,
                           env=os.environ | {"JAX_PLATFORMS": "cpu"})  # fmt: skip
    given = {"name": "main", "calls": 1, "donated": (), "specs": {}} | fields
    return Program(hlo=ended.stdout, inputs=inputs, outputs=outputs, **given)
