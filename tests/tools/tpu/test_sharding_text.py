"""tools.tpu.sharding_text against a count by hand of which device holds which tile."""

import itertools
import random

import numpy as np
import pytest

from tools.tpu import sharding_text

SPECS = [("fsdp", None), (None, "fsdp"), ("data", None), ("data", "fsdp"), ("fsdp", "data"), (("data", "fsdp"), None),
         (("fsdp", "data"), None), (None, ("data", "fsdp"), None), (None,), (), ("fsdp",), (("fsdp", "part"), None),
         (("part", "data", "fsdp"), None), ("part",), (("data", "part"), "fsdp")]  # fmt: skip


def holders(spec, mesh):
    """Tile -> the devices that hold it, in order, by walking over the mesh."""
    found = {}
    for place in itertools.product(*(range(size) for size in mesh.values())):
        where = dict(zip(mesh, place, strict=True))
        device = np.ravel_multi_index(place, tuple(mesh.values()))
        tile = []
        for entry in spec:
            index = 0
            for axis in sharding_text.axes_of(entry):
                index = index * mesh[axis] + where[axis]
            tile.append(index)
        found.setdefault(tuple(tile), []).append(int(device))
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_every_tile_is_where_it_belongs(spec):
    mesh = {"part": random.choice((1, 2, 8)), "data": random.choice((1, 2, 4, 32)), "fsdp": random.choice((1, 2, 4, 8))}
    text = sharding_text.to_text(spec, mesh)
    read = sharding_text.canonical(text)
    expected = holders(spec, mesh)
    if read == sharding_text.REPLICATED:
        assert len(expected) == 1
        return
    tiles, devices, copies = read
    by_tile = np.array(devices).reshape(*tiles[: len(spec)], -1)
    assert copies == (by_tile.shape[-1] > 1)
    assert {tile: sorted(by_tile[tile].tolist()) for tile in expected} == {t: sorted(d) for t, d in expected.items()}


def test_forms_of_one_sharding_are_one():
    forms = ["{devices=[4,1,2]0,4,1,5,2,6,3,7 last_tile_dim_replicate}",
             "{devices=[4,1,2]<=[2,4]T(1,0) last_tile_dim_replicate}"]  # fmt: skip
    assert len({sharding_text.canonical(form) for form in forms}) == 1
    assert sharding_text.canonical(forms[0]) == sharding_text.canonical(
        sharding_text.to_text(("fsdp", None), {"data": 2, "fsdp": 4})
    )
    assert sharding_text.canonical("{devices=[8]<=[8]}") != sharding_text.canonical("{devices=[8,1]<=[8]}")


def test_what_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="manual"):
        sharding_text.canonical("{manual}")
    with pytest.raises(ValueError, match="twice"):
        sharding_text.to_text(("fsdp", "fsdp"), {"data": 2, "fsdp": 4})
