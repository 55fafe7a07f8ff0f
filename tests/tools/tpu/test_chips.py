"""tools.tpu.chips: topologies as they are written, refused in one line, and laid out as the compiler lays them out."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.compiler import needs_compiler
from tools.tpu.chips import CHIPS, Topology

COORDINATES = """
import json, sys
from jax.experimental import topologies
topology = topologies.get_topology_desc(sys.argv[1], platform="tpu", chip_config_name=sys.argv[2])
print(json.dumps({device.id: device.coords for device in topology.devices}))
"""


@pytest.mark.parametrize("text, chips", [("v4:8x8x4", 256), ("v4:2x2x1", 4), ("v5e:16x16", 256), ("v6e:4x8", 32)])
def test_parse(text, chips):
    topology = Topology.parse(text)
    assert topology.num_chips == chips and str(topology) == text


@pytest.mark.parametrize("text", ["v4", "v9:2x2", "v4:8x8", "v5e:2x2x1", "v4:2x0x1", "v4:2x2x1,", "V4:2x2x1"])
def test_refused_in_one_line(text):
    with pytest.raises(ValueError, match=f"--topology={text}") as error:
        Topology.parse(text)
    assert "\n" not in str(error.value)


def test_rings_close_where_the_wiring_has_them():
    assert [Topology.parse("v4:8x2x4").is_ring(axis) for axis in range(3)] == [True, False, True]
    assert [Topology.parse("v5e:16x8").is_ring(axis) for axis in range(2)] == [True, False]


@pytest.mark.parametrize("kind, gflops", [("v4", 262144), ("v5e", 131072), ("v5p", 262144), ("v6e", 524288)])
def test_clock_and_peak_belong_together(kind, gflops):
    assert CHIPS[kind].peak_flops / (CHIPS[kind].mhz * 1e6) == pytest.approx(gflops, rel=0.002)


@needs_compiler
@pytest.mark.parametrize("text", ["v4:8x8x4", "v5e:4x8"])
def test_places_are_those_of_the_compiler(text):
    topology = Topology.parse(text)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                                "TPU_ACCELERATOR_TYPE": topology.chip.accelerator}  # fmt: skip
    command = [sys.executable, "-c", COORDINATES, text, topology.chip.config]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    places = json.loads(ended.stdout.splitlines()[-1])
    assert len(places) == topology.num_chips
    for device, place in places.items():
        assert topology.coordinates(int(device)) == tuple(place[: len(topology.shape)])
