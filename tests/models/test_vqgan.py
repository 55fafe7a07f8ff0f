"""Image tokenizer against a straight-line reference written from the paper's description."""

import math

import pytest
import torch
import torch.nn.functional as F

from itit.config import VqganConfig
from itit.models.vqgan import VQGAN

CONFIGS = [
    VqganConfig(image_size=16, channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, latent_dim=5,
                codebook_size=17, pixel_low=-1.0),
    VqganConfig(image_size=24, channels=12, channel_multipliers=(1, 3), num_res_blocks=2, latent_dim=7,
                codebook_size=40),
    VqganConfig(image_size=24, patch_size=3, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_dim=4,
                codebook_size=11),
]  # fmt: skip


def make(config):
    model = VQGAN(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


class Reference:
    """The same network as a list of functional calls that takes the weights in order, one by one."""

    def __init__(self, part, config):
        self.weights, self.config = iter(list(part.parameters())), config

    def conv(self, x, bias=True):
        weight = next(self.weights)
        return F.conv2d(x, weight, next(self.weights) if bias else None, padding=weight.shape[-1] // 2)

    def norm(self, x):
        weight, bias = next(self.weights), next(self.weights)
        groups = max(g for g in (1, 2, 4, 8, 16, 32) if x.shape[1] % g == 0 and (x.shape[1] // 4) % g == 0)
        parts = x.reshape(x.shape[0], groups, -1)
        parts = (parts - parts.mean(-1, keepdim=True)) / (parts.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]

    def swish(self, x):
        return x * torch.sigmoid(x)

    def block(self, x, width):
        y = self.conv(self.swish(self.norm(x)))
        y = self.conv(self.swish(self.norm(y)))
        return y + (x if x.shape[1] == width else self.conv(x, bias=False))

    def down(self, x):
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    def up(self, x):
        return self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2))

    def encode(self, x):
        c, p = self.config, self.config.patch_size
        patches = [x[:, colour, row::p, column::p] for colour in range(3) for row in range(p) for column in range(p)]
        x = self.conv(torch.stack(patches, 1))
        for level, multiplier in enumerate(c.channel_multipliers):
            x = self.down(x) if level else x
            for _ in range(c.num_res_blocks):
                x = self.block(x, c.channels * multiplier)
        for _ in range(c.num_res_blocks):
            x = self.block(x, x.shape[1])
        return self.conv(self.swish(self.norm(x)))

    def decode(self, x):
        c = self.config
        x = self.conv(x)
        for _ in range(c.num_res_blocks):
            x = self.block(x, x.shape[1])
        for level in reversed(range(len(c.channel_multipliers))):
            for _ in range(c.num_res_blocks):
                x = self.block(x, c.channels * c.channel_multipliers[level])
            x = self.up(x) if level else x
        x, p = self.conv(self.swish(self.norm(x))), c.patch_size
        picture = torch.empty(x.shape[0], 3, c.image_size, c.image_size, dtype=x.dtype)
        for channel in range(3 * p * p):
            colour, row, column = channel // p**2, channel // p % p, channel % p
            picture[:, colour, row::p, column::p] = x[:, channel]
        return picture


@pytest.mark.parametrize("config", CONFIGS)
def test_encoder_and_decoder_equal_reference(config):
    model = make(config)
    images = torch.rand(3, 3, config.image_size, config.image_size, dtype=torch.double)
    encoder, decoder = Reference(model.encoder, config), Reference(model.decoder, config)
    features = model.encoder(images)
    assert features.shape == (3, config.latent_dim, config.grid, config.grid)
    torch.testing.assert_close(features, encoder.encode(images))
    result = model.decoder(features)
    assert result.shape == images.shape
    torch.testing.assert_close(result, decoder.decode(features))
    assert next(encoder.weights, None) is None and next(decoder.weights, None) is None


@pytest.mark.parametrize("config", CONFIGS)
def test_ids_name_the_nearest_codes_in_row_order(config):
    model = make(config)
    features = torch.randn(2, config.latent_dim, config.grid, config.grid, dtype=torch.double)
    ids, codes = model.quantize(features)
    for b in range(2):
        for row in range(config.grid):
            for column in range(config.grid):
                x = features[b, :, row, column]
                nearest = min(range(config.codebook_size), key=lambda c: (model.codebook.weight[c] - x).norm().item())
                assert ids[b, row * config.grid + column] == nearest
                assert torch.equal(codes[b, :, row, column], model.codebook.weight[nearest])
    torch.testing.assert_close(model.decode(ids), model.decoder(codes))


def test_ids_ignore_autocast_and_the_rest_of_the_batch():
    config = CONFIGS[1]
    model = make(config).float()
    images = torch.rand(4, 3, config.image_size, config.image_size)
    features = model.encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model.quantize(features)[0]
    assert torch.equal(inside, model.quantize(features)[0])
    assert torch.equal(model.encode(images[2:3])[0], model.encode(images)[2])


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1.0, 1.0)])
def test_pixels_go_both_ways(low, high):
    config = VqganConfig(image_size=8, channels=4, channel_multipliers=(1, 1), num_res_blocks=1, latent_dim=3,
                         codebook_size=9, pixel_low=low, pixel_high=high)  # fmt: skip
    model = VQGAN(config)
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    images = model.from_pixels(pixels)
    for b, y, x, c in torch.randint(0, 2, (5, 4)).tolist():
        assert images[b, c, y, x].item() == pytest.approx(
            low + (high - low) * pixels[b, y, x, c].item() / 255, abs=1e-5
        )
    model.decode = lambda ids: images
    assert torch.equal(model.to_pixels(None), pixels)
    model.decode = lambda ids: images * 3 - 1
    assert model.to_pixels(None).dtype == torch.uint8
    assert torch.equal(model.to_pixels(None) == 255, (images * 3 - 1 >= high - (high - low) / 510).permute(0, 2, 3, 1))


def test_tokenize_is_encode_of_the_pixels():
    config = CONFIGS[0]
    model = VQGAN(config)
    pixels = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    ids = model.tokenize(pixels)
    assert ids.dtype == torch.int64 and ids.shape == (2, config.grid**2)
    assert torch.equal(ids, model.encode(pixels.permute(0, 3, 1, 2) / 255 * 2 - 1))
    assert model.to_pixels(ids).shape == pixels.shape


def test_a_batch_is_filled_up_to_what_a_mesh_asks_for():
    model, sizes = make(CONFIGS[0]), []  # in float64: batches of another size round otherwise
    encode = model.encode
    model.encode = lambda images: sizes.append(len(images)) or encode(images.double())
    pixels = torch.randint(0, 256, (11, 16, 16, 3), dtype=torch.uint8)
    for multiple, count, seen in ((1, 3, 3), (8, 3, 8), (8, 8, 8), (8, 11, 16)):
        model.row_multiple = multiple
        ids = model.tokenize(pixels[:count])
        assert sizes[-1] == seen and len(ids) == count
        assert torch.equal(ids, encode(model.from_pixels(pixels[:count]).double()))


def test_paper_size_has_256_tokens_and_32_groups():
    with torch.device("meta"):
        model = VQGAN(VqganConfig())
    assert model.config.grid**2 == 256
    groups = {m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {32}
    convolutions = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    # 5 levels and the middle with 2 blocks of 2, two changes of width, first and last.
    assert len(convolutions) == 6 * 2 * 2 + 2 + 2
    assert math.prod(model.codebook.weight.shape) == 8192 * 256


@pytest.mark.parametrize("values, message", [
    ({"image_size": 20, "channel_multipliers": (1, 1, 1, 1)}, "image_size=20: must be a multiple of 8"),
    ({"family": "Taming"}, "family=Taming: must be one of plain, maskgit, taming"),
    ({"channel_multipliers": ()}, r"channel_multipliers=\(\): must be one positive number a level"),
    ({"patch_size": 0}, "num_res_blocks=2: must be at least 1, as patch_size"),
    ({"attention_levels": (5,)}, r"attention_levels=\(5,\): must be in \[0, 1, 2, 3, 4\]"),
    ({"norm_groups": 48}, r"norm_groups=48: must be 0 or a divisor of the widths \[128, 256, 512\]"),
    ({"local_encoder": True, "middle_attention": True}, "local_encoder=True: must be false with attention"),
    ({"local_decoder": True, "attention_levels": (0,)}, "local_decoder=True: must be false with attention"),
    ({"codebook_size": 1}, "codebook_size=1: must be at least 2"),
    ({"pixel_low": math.nan}, "pixel_low=nan: must be finite and below pixel_high=1.0"),
    ({"pixel_high": -1.0}, "pixel_low=0.0: must be finite and below pixel_high=-1.0"),
])  # fmt: skip
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        VQGAN(VqganConfig(**values))


@pytest.mark.parametrize("values", [{}, {"family": "maskgit"}, {"family": "taming"}])
def test_every_family_begins_with_a_gradient(values):
    """No weight of the path from pictures to pictures is cut off by the initial zeros for good."""
    config = VqganConfig(
        image_size=16, channels=8, channel_multipliers=(1, 2), num_res_blocks=1, latent_dim=4, **values
    )
    model = VQGAN(config)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    images = torch.rand(2, 3, 16, 16)
    for _ in range(3):
        optimizer.zero_grad()
        (model.decoder(model.encoder(images)) - images).square().mean().backward()
        optimizer.step()
    trained = {name: parameter for name, parameter in model.named_parameters() if name != "codebook.weight"}
    assert all(parameter.grad.abs().max() > 0 for parameter in trained.values())


def test_initial_network_keeps_colour():
    """Without its residual branches, and they begin at zero, the encoder is linear up to its last norm."""
    model = VQGAN(CONFIGS[0])
    x, y = torch.randn(2, 1, 3, 16, 16)
    body = torch.nn.Sequential(model.encoder.conv_in, model.encoder.stages)
    torch.testing.assert_close(body(x) + body(y), body(x + y))
    first = VQGAN(VqganConfig(image_size=24, channels=256, channel_multipliers=(1,), num_res_blocks=1)).encoder.conv_in
    seen = torch.randn(8, 3, 24, 24)
    assert first(seen)[..., 1:-1, 1:-1].std().item() == pytest.approx(1.0, rel=0.35)


def local():
    config = VqganConfig(
        image_size=32, patch_size=4, local_encoder=True, local_decoder=True, channels=8, channel_multipliers=(1, 2),
        num_res_blocks=1, latent_dim=5, codebook_size=11,
    )  # fmt: skip
    model = VQGAN(config)
    for parameter in model.parameters():  # the residual branches begin at zero
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_local_encoder_sees_each_square_alone():
    """Features of a token do not change with the other squares, and equal squares anywhere get equal features."""
    model = local()
    images = torch.rand(1, 3, 32, 32)
    changed = images.clone()
    changed[..., 8:16, 16:24] = torch.rand(3, 8, 8)  # the square of row 1, column 2
    before, after = model.encoder(images)[0], model.encoder(changed)[0]  # [D, G, G]
    differs = (before - after).abs().amax(0) > 1e-6
    assert differs[1, 2] and differs.sum() == 1
    changed[..., 24:32, 0:8] = changed[..., 8:16, 16:24]
    again = model.encoder(changed)[0]
    torch.testing.assert_close(again[:, 3, 0], again[:, 1, 2])


def test_a_local_decoder_draws_each_square_alone():
    """A code changes the pixels of its own square alone, and is drawn alike wherever it stands."""
    model = local()
    ids = torch.randint(11, (1, 16))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 3) % 11  # row 1, column 2
    changed[0, 12] = changed[0, 6]  # row 3, column 0
    before, after = model.decode(ids)[0], model.decode(changed)[0]  # [3, S, S]
    differs = (before - after).abs().amax(0)
    assert differs[8:16, 16:24].max() > 1e-4
    differs[8:16, 16:24] = differs[24:32, 0:8] = 0
    assert differs.max() < 1e-6
    torch.testing.assert_close(after[:, 24:32, 0:8], after[:, 8:16, 16:24])
