"""Where every tensor of the state and of a batch lies on a mesh."""

import itertools
import math

import pytest
import torch

from itit import config as settings
from itit.checkpoint.pieces import overlap, slices, whole_index
from itit.checks import check_batches
from itit.models import VQGAN, ITITModel, T5Encoder
from itit.xla import sharding
from tests.helpers.tiny import make_config, make_state
from tools.tpu import sharding_text


def shapes_of(module):
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def pieces(spec, sizes):
    """Into how many parts a spec splits each dimension. `sizes`: axis -> devices."""
    return [math.prod(sizes[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ())) for axes in spec]


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
@pytest.mark.parametrize("preset", ["B", "L", "H"])
def test_matrices_of_the_paper_split_evenly_and_vectors_stay_whole(preset, fsdp):
    """Of the model and of T5-XXL; what is kept whole is under a hundredth."""
    config = settings.replace(settings.Config(), preset=preset).resolve()
    with torch.device("meta"):
        found = shapes_of(ITITModel(config.model)) | {f"t5/{n}": s for n, s in shapes_of(T5Encoder(config.t5)).items()}
    whole = 0
    for name, shape in found.items():
        spec = sharding.parameter_spec(name, shape, fsdp)
        assert len(spec) == len(shape) and set(spec) <= {None, "fsdp"} and spec.count("fsdp") <= 1, name
        assert all(size % parts == 0 for size, parts in zip(shape, pieces(spec, {"fsdp": fsdp}), strict=True)), name
        whole += math.prod(shape) if "fsdp" not in spec else 0
        assert "fsdp" not in spec or len(shape) >= 2, name
    assert whole < 0.01 * sum(math.prod(shape) for shape in found.values())


@pytest.mark.parametrize("data, fsdp, parts", [(1, 2, 1), (8, 1, 8), (2, 4, 2), (4, 8, 4), (96, 1, 32), (8, 8, 4),
                                               (40, 2, 10), (2, 64, 1)])  # fmt: skip
def test_the_grid_has_an_axis_for_the_parts_of_moments(data, fsdp, parts):
    axes = sharding.axes(data, fsdp)
    assert axes == {"part": parts, "data": data // parts, "fsdp": fsdp} and tuple(axes) == sharding.BATCH
    assert math.prod(axes.values()) == data * fsdp


@pytest.mark.parametrize("preset", ["B", "L", "H"])
def test_on_a_pod_moments_of_the_papers_models_are_cut_between_tiles(preset):
    config = settings.replace(settings.Config(), preset=preset).resolve()
    with torch.device("meta"):
        shapes = shapes_of(ITITModel(config.model))
    split = whole = 0
    for fsdp in (1, 8):
        mesh = sharding.axes(256 // fsdp, fsdp)
        for name, shape in shapes.items():
            spec = sharding.state_spec(f"optimizer/moment/{name}", shape, 256 // fsdp, fsdp, shapes)
            if len(shape) == 1:
                continue
            if sharding.TRAINED in spec:
                dim = spec.index(sharding.TRAINED)
                assert shape[dim] // pieces(spec, mesh)[dim] % 8 == 0, (name, shape, spec)
                split += math.prod(shape)
            else:
                whole += math.prod(shape)
    assert whole < 0.01 * split


@pytest.mark.parametrize("data, fsdp", [(1, 2), (8, 1), (2, 4), (4, 8), (96, 1)])
def test_what_is_trained_is_split_where_it_divides(data, fsdp):
    """Moments, averages and the weights that are cast ahead: each lies as its weight on a mesh that splits over as
    many; a factored second moment is the mean over one dimension, and lies as the one that is left."""
    config = make_config(embed_dim=128, num_heads=4, codebook_size=160, ema_decay=0.9)
    state = make_state(config, 0)
    shapes, factored, split, cast = shapes_of(state.model), 0, 0, {"encoder.blocks.0.mlp.up.weight"}
    for name, tensor in state.tensors().items():
        owner, _, rest = name.partition("/")
        spec = sharding.state_spec(name, tuple(tensor.shape), data, fsdp, shapes, cast)
        if rest == "count":
            assert spec == ()
            continue
        parameter = rest.removeprefix("moment/").removeprefix("square0/").removeprefix("square1/")
        expected = sharding.parameter_spec(parameter, shapes[parameter], fsdp)
        every = sharding.parameter_spec(parameter, shapes[parameter], sharding.axes(data, fsdp)["part"] * fsdp)
        if (owner != "model" or parameter in cast) and "fsdp" in every:
            expected = tuple(axis and ("fsdp", "part") for axis in every)
            split += 1
        if owner == "optimizer" and tensor.ndim < len(expected):
            factored += 1
            left = 0 if rest.startswith("square0") else 1  # square0 is the mean over the last dimension
            assert tensor.shape == (shapes[parameter][left],)
            assert spec == (expected[left],), name
        else:
            assert spec == expected, name
    assert factored > 20 and split > 10


@pytest.mark.parametrize("data, fsdp", [(2, 4), (4, 2), (8, 1), (1, 8)])
def test_a_device_holds_the_moments_of_a_part_of_the_weight_that_it_holds(data, fsdp):
    mesh, shapes = sharding.axes(data, fsdp), {"a.weight": (64, 8)}
    places = {}
    for name in ("model/a.weight", "optimizer/moment/a.weight"):
        spec = sharding.state_spec(name, (64, 8), data, fsdp, shapes)
        text = sharding_text.canonical(sharding_text.to_text(spec, mesh))
        tiles, devices, copies = ((1, 1, 8), range(8), True) if text == sharding_text.REPLICATED else text
        part = tiles[2] if copies else 1  # devices that hold the same rows come one after the other
        places[name] = {device: (i // part * 64 // tiles[0], 64 // tiles[0]) for i, device in enumerate(devices)}
    weights, moments = places.values()
    assert {length for _, length in moments.values()} == {8}
    for device, (start, length) in weights.items():
        assert length == 64 // fsdp and start <= moments[device][0] < start + length


def test_rows_of_a_batch_lie_on_all_axes():
    assert sharding.batch_spec((16, 3, 4), 8) == (("part", "data", "fsdp"), None, None)
    assert sharding.batch_spec((12, 3), 8) == (None, None)
    assert sharding.batch_spec((), 8) == ()


@pytest.mark.parametrize(
    "asked, devices, found",
    [((0, 0), 256, (32, 8)), ((0, 0), 4, (1, 4)), ((0, 0), 6, (1, 6)), ((0, 0), 1, (1, 1)), ((0, 4), 256, (64, 4)),
     ((2, 0), 8, (2, 4)), ((8, 1), 8, (8, 1)), ((0, 0), 22, (11, 2))],
)  # fmt: skip
def test_a_mesh_is_filled_in(asked, devices, found):
    assert sharding.mesh_shape(*asked, devices) == found


@pytest.mark.parametrize("asked, devices", [((3, 0), 8), ((2, 2), 8), ((0, 3), 8), ((0, 16), 8)])
def test_a_mesh_that_does_not_match_is_named(asked, devices):
    with pytest.raises(ValueError, match=rf"--mesh_data=\d+ --mesh_fsdp=\d+: .* the {devices} devices"):
        sharding.mesh_shape(*asked, devices)


def test_a_batch_that_does_not_divide_is_named():
    check_batches({"t2i": 32, "i2t": 16}, 8, 2)
    with pytest.raises(ValueError, match="--i2t_batch=12: must be a multiple of 8 devices$"):
        check_batches({"t2i": 32, "i2t": 12}, 8)
    with pytest.raises(ValueError, match="--i2t_batch=24: must be a multiple of 8 devices in 2 microbatches"):
        check_batches({"t2i": 32, "i2t": 24}, 8, 2)


def test_every_block_is_marked_to_stay_split_by_rows():
    config = make_config()
    vqgan = VQGAN(settings.VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1))
    found = {}
    for module in (ITITModel(config.model), T5Encoder(config.t5), vqgan):
        for name, part in module.named_modules():
            inside = "blocks." in name and name.rpartition(".")[2].isdigit()
            if inside or hasattr(part, "compute_dtype") and name.endswith("head") or hasattr(part, "conv1"):
                assert part.returns_rows is True, name
                found[type(part)] = found.get(type(part), 0) + 1
    assert len(found) == 4 and min(found.values()) >= 2, found


@pytest.mark.parametrize("shape, counts", [((6, 8), (3, 2)), ((5,), (5,)), ((), ()), ((4, 3, 2), (1, 3, 2))])
def test_parts_of_a_tensor(shape, counts):
    """Parts on a grid overlap in themselves alone, and cut the tensor up."""
    sizes = [size // count for size, count in zip(shape, counts, strict=True)]
    grid = list(itertools.product(*(range(count) for count in counts)))
    parts = [tuple((i * size, (i + 1) * size) for i, size in zip(place, sizes, strict=True)) for place in grid]
    tensor, times = torch.randn(shape), torch.zeros(shape)
    for part in parts:
        assert [overlap(part, other) for other in parts if other != part] == [None] * (len(parts) - 1)
        assert overlap(whole_index(shape), part) == part == overlap(part, part)
        times[slices(part)] += 1
        assert torch.equal(tensor[slices(part)][slices(part, part)], tensor[slices(part)])
    assert bool((times == 1).all())
    if shape == (6, 8):
        assert overlap(((1, 5), (0, 4)), ((4, 6), (2, 8))) == ((4, 5), (2, 4))
        assert slices(((4, 5), (2, 4)), ((4, 6), (2, 8))) == (slice(0, 1), slice(0, 2))
