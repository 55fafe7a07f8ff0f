"""tools.tpu.ici against examples counted by hand: v4 links carry 45e9 bytes/s one way, an axis of 4 or 8 is a ring."""

import pytest

from tools.tpu import ici
from tools.tpu.chips import Topology

POD, TRAY = Topology.parse("v4:8x8x4"), Topology.parse("v4:2x2x1")
ALONG_X, ALONG_YZ = tuple(range(8)), tuple(range(0, 256, 8))
MB = 1e6


def test_extents():
    assert ici.extents(POD, ALONG_X) == [(8, True)]
    assert ici.extents(POD, ALONG_YZ) == [(8, True), (4, True)]
    assert ici.extents(POD, tuple(range(256))) == [(8, True), (8, True), (4, True)]
    assert ici.extents(POD, (0, 1, 2, 3)) == [(4, False)]  # half of the ring is a line
    assert ici.extents(TRAY, (0, 1, 2, 3)) == [(2, False), (2, False)]
    assert ici.extents(POD, (5,)) == []


@pytest.mark.parametrize("topology, kind, megabytes, group, expected", [
    # A chip gets 7/8 of 72 MB by two links.
    (POD, "all-gather", 72, ALONG_X, 63e6 / 90e9),
    (POD, "reduce-scatter", 72, ALONG_X, 63e6 / 90e9),
    (POD, "all-reduce", 72, ALONG_X, 2 * 63e6 / 90e9),
    # 31/32 by four links.
    (POD, "all-reduce", 64, ALONG_YZ, 2 * 62e6 / 180e9),
    # 3/4, by one link along each of two axes.
    (TRAY, "all-gather", 60, (0, 1, 2, 3), 45e6 / 90e9),
    # Half of a ring: a line of 4, one link at its end.
    (POD, "all-gather", 60, (0, 1, 2, 3), 45e6 / 45e9),
    # On a ring of 8, an eighth of a chip's rows stays, and the others go 1, 2, 3, 4, 3, 2, 1 links: 16/8 = 2 on
    # average, over two links.
    (POD, "all-to-all", 45, ALONG_X, 45e6 * 2 / 2 / 45e9),
    # Across the middle of a line of 4 go, each way, the rows of two chips, half of each: one chip's worth.
    (POD, "all-to-all", 45, (0, 1, 2, 3), 45e6 / 45e9),
    (POD, "collective-permute", 45, (0, 1), 1e-3),
])  # fmt: skip
def test_by_hand(topology, kind, megabytes, group, expected):
    assert ici.seconds(topology, kind, megabytes * MB, group) == pytest.approx(expected)


def test_little_data_takes_the_time_of_the_way():
    assert ici.seconds(POD, "all-gather", 8, ALONG_X) == pytest.approx(4e-6)  # half way round
    assert ici.seconds(POD, "all-reduce", 8, ALONG_YZ) == pytest.approx(2 * (4 + 2) * 1e-6)
    assert ici.seconds(TRAY, "all-to-all", 8, (0, 1, 2, 3)) == pytest.approx(2e-6)
    assert ici.seconds(POD, "all-reduce", 1e9, (3,)) == 0


def test_bytes_that_a_chip_gets():
    assert ici.moved("all-gather", 800, 8) == ici.moved("reduce-scatter", 800, 8) == 700
    assert ici.moved("all-reduce", 800, 8) == 1400
    assert ici.moved("collective-permute", 800, 2) == 800
