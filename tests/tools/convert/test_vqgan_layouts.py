"""Public tokenizers under their own names: the same codes and pixels as diffusers, or as a straight line, computes."""

import pytest
import torch
from diffusers import VQModel

from itit.models.vqgan import VQGAN
from tests.helpers.public_vqgans import Reference, maskgit, spread_codes, taming
from tests.helpers.small import fresh_seed  # noqa: F401 (a fixture)
from tools.convert.vqgan_layouts import LAYOUTS, Misfit, find, translate

SIDE, GRID = 48, 3
STATES = {
    "openmuse": lambda: taming(widths=(32, 64, 64, 96, 160), attention=()),
    "taming": taming,
    "maskgit": maskgit,
    "mage": lambda: maskgit(mage=True),
}
PIXELS = {"openmuse": (0, 1), "taming": (-1, 1), "maskgit": (0, 1), "mage": (0, 1), "diffusers": (0, 1)}


def pictures(name, count=3):
    low, high = PIXELS[name]
    return torch.rand(count, 3, SIDE, SIDE) * (high - low) + low


def load(state, name):
    config, tensors = translate(state, LAYOUTS[name], image_size=SIDE)
    model = VQGAN(config)
    model.load_state_dict(tensors)
    return model.eval()


@torch.no_grad()
def compare(model, images, features, ids, result):
    """Ours against theirs, of the same pictures."""
    assert ids.shape == (len(images), GRID**2) and len(ids.unique()) > len(ids.flatten()) / 3
    torch.testing.assert_close(model.encoder(images), features, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.encode(images), ids)
    assert (model.decode(ids) - result).abs().max() < 1e-4


@pytest.mark.parametrize("name", STATES)
def test_same_codes_and_pixels_as_a_straight_line(name):
    state, images = STATES[name](), pictures(name)
    spread_codes(state, Reference(state).features(images))
    reference = Reference(state)
    assert find(state) == name
    model = load(state, name)
    assert (model.config.pixel_low, model.config.pixel_high) == PIXELS[name]
    compare(model, images, reference.features(images), ids := reference.ids(images), reference.pictures(ids, GRID))


@pytest.mark.parametrize("name", STATES)
def test_pictures_of_bytes_have_the_range_of_the_layout(name):
    state = STATES[name]()
    pixels = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    low, high = PIXELS[name]
    images = pixels.movedim(-1, 1).float() / 255 * (high - low) + low
    reference, model = Reference(state), load(state, name)
    spread_codes(state, reference.features(images))
    model.codebook.weight.data.copy_(state["quantize.embedding.weight"])
    ids = reference.ids(images)
    assert torch.equal(model.tokenize(pixels), ids)
    unit = (reference.pictures(ids, GRID) - low) / (high - low)
    off = (model.to_pixels(ids).movedim(-1, 1).float() - unit.clamp(0, 1) * 255).abs()
    assert off.max() < 0.5 + 0.05  # rounding, and differences of 1e-4


def diffusers_model(attention):
    """diffusers' VQModel as aMUSEd has it, narrower; with attention as the taming f16 networks have it."""
    widths = (32, 64, 64, 96, 160)
    down, up = ["DownEncoderBlock2D"] * 5, ["UpDecoderBlock2D"] * 5
    if attention:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    model = VQModel(
        block_out_channels=widths, down_block_types=down, up_block_types=up, layers_per_block=2, latent_channels=24,
        num_vq_embeddings=200, norm_num_groups=32, mid_block_add_attention=attention, lookup_from_codebook=True,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.randn_like(parameter) * 0.2
    return model


@pytest.mark.parametrize("attention", [False, True])
@torch.no_grad()
def test_same_codes_and_pixels_as_diffusers(attention):
    theirs, images = diffusers_model(attention), pictures("diffusers")
    state = theirs.state_dict()
    spread_codes(state, theirs.encode(images).latents)
    theirs.load_state_dict(state)
    assert find(state) == "diffusers"
    model = load(state, "diffusers")
    assert model.config.middle_attention == attention and model.config.attention_levels == ((4,) if attention else ())
    features = theirs.encode(images).latents
    ids = theirs.quantize(features)[2][2].view(len(images), -1)
    shape = (len(images), GRID, GRID, features.shape[1])
    result = theirs.decode(ids.flatten(), force_not_quantize=True, shape=shape).sample
    compare(model, images, features, ids, result)


def test_amused_and_openmuse_are_one_network_under_two_names():
    """The same weights, renamed here by hand, give equal tensors."""
    state = taming(widths=(32, 64, 64, 96, 160), attention=())
    twin = {}
    for name, tensor in state.items():
        for level in range(5):
            name = name.replace(f"down.{level}.block", f"down_blocks.{level}.resnets")
            name = name.replace(f"down.{level}.downsample", f"down_blocks.{level}.downsamplers.0")
            name = name.replace(f"up.{level}.block", f"up_blocks.{4 - level}.resnets")
            name = name.replace(f"up.{level}.upsample", f"up_blocks.{4 - level}.upsamplers.0")
        name = name.replace("mid.block_1", "mid_block.resnets.0").replace("mid.block_2", "mid_block.resnets.1")
        twin[name.replace("norm_out", "conv_norm_out").replace("nin_shortcut", "conv_shortcut")] = tensor
    assert find(twin) == "diffusers"
    first, second = translate(state, LAYOUTS["openmuse"]), translate(twin, LAYOUTS["diffusers"])
    assert first[0] == second[0] and first[1].keys() == second[1].keys()
    assert all(torch.equal(tensor, second[1][name]) for name, tensor in first[1].items())


@pytest.mark.parametrize("name, state, expected", [
    # Sizes as published: aMUSEd's vqvae/config.json; taming's configs/imagenet_vqgan.yaml; MAGE's config/vqgan.yaml,
    # which are those of MaskGIT, too.
    ("openmuse", lambda: taming((128, 256, 256, 512, 768), 2, 64, 8192, 64, ()),
     dict(channel_multipliers=(1, 2, 2, 4, 6), latent_dim=64, bottleneck_dim=64, codebook_size=8192)),
    ("taming", lambda: taming((128, 128, 256, 256, 512), 2, 256, 1024, 256, (4,)),
     dict(channel_multipliers=(1, 1, 2, 2, 4), latent_dim=256, bottleneck_dim=256, codebook_size=1024)),
    ("maskgit", lambda: maskgit((128, 128, 256, 256, 512), 2, 1024, 256),
     dict(channel_multipliers=(1, 1, 2, 2, 4), latent_dim=256, codebook_size=1024)),
    ("mage", lambda: maskgit((128, 128, 256, 256, 512), 2, 1024, 256, mage=True),
     dict(channel_multipliers=(1, 1, 2, 2, 4), latent_dim=256, codebook_size=1024)),
])  # fmt: skip
def test_published_sizes(name, state, expected):
    with torch.device("meta"):
        state = state()
    assert find(state) == name
    config = translate(state, LAYOUTS[name])[0]
    assert {field: getattr(config, field) for field in expected} == expected
    assert (config.channels, config.num_res_blocks, config.grid**2) == (128, 2, 256)


def test_half_precision_and_training_only_tensors():
    state = taming()
    half = {name: tensor.half() for name, tensor in state.items()} | {"loss.discriminator.main.0.weight": torch.ones(3)}
    assert find(half) == "taming"
    for name, tensor in translate(half, LAYOUTS["taming"])[1].items():
        assert tensor.dtype == torch.float32, name
    with pytest.raises(Misfit, match="discriminator.main.0.weight has no place"):
        translate(state | {"discriminator.main.0.weight": torch.ones(3)}, LAYOUTS["taming"])


@pytest.mark.parametrize("name", [*STATES, "diffusers"])
def test_every_name_counts(name):
    """Any tensor that is absent, renamed or of another shape is found and named."""
    state = STATES[name]() if name in STATES else diffusers_model(False).state_dict()
    for key in (list(state)[n] for n in torch.randint(len(state), (4,)).tolist()):
        rest = {other: tensor for other, tensor in state.items() if other != key}
        for changed in (rest, rest | {f"{key}2": state[key]}, rest | {key: torch.zeros(3, 5, 7)}):
            with pytest.raises(ValueError, match="no known layout .*; nearest is "):
                find(changed)
    added = state | {"encoder.extra.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=f"nearest is {name}: .*: encoder.extra.weight has no place$"):
        find(added)
    key = "decoder.conv_out.bias"
    with pytest.raises(ValueError, match=f"nearest is {name}: .*: {key} is \\(7,\\), expected \\(3,\\)$"):
        find(state | {key: torch.zeros(7)})


def test_a_wrong_layout_is_named_with_the_first_keys():
    with pytest.raises(Misfit, match="^not openMUSE MaskGitVQGAN .*: encoder.mid.0.norm1.weight is absent"):
        translate(maskgit(mage=True), LAYOUTS["maskgit"])
    with pytest.raises(Misfit, match="^not diffusers VQModel .*: encoder.down_blocks.0.resnets.0.conv1.weight is abse"):
        translate(taming(), LAYOUTS["diffusers"])
    with pytest.raises(Misfit, match="^not openMUSE VQGANModel .*: encoder.mid.attn_1 is there$"):
        translate(taming(), LAYOUTS["openmuse"])
    with pytest.raises(Misfit, match="^not taming-transformers VQModel: encoder.mid.attn_1 is absent$"):
        translate(taming(attention=()), LAYOUTS["taming"])
    with pytest.raises(ValueError, match="no known layout"):
        find({"weight": torch.ones(2)})
    with pytest.raises(ValueError, match="image_size=40: must be a multiple of 16"):
        translate(taming(), LAYOUTS["taming"], image_size=40)
