"""How public image tokenizers name their tensors, and what their networks are: their names -> those of `VQGAN`.

Sources: the state dicts of CompVis/taming-transformers (taming/models/vqgan.py), huggingface/open-muse
(muse/modeling_taming_vqgan.py, muse/modeling_maskgit_vqgan.py), huggingface/diffusers (VQModel) and LTH14/mage
(taming/models/vqgan.py there, a port of MaskGIT's network). Sizes are read off the shapes.
"""

import dataclasses
import re

import torch

from itit.config import VqganConfig
from itit.models.vqgan import VQGAN, Attention, ResBlock, num_middle_blocks

ZERO_TO_ONE, MINUS_ONE_TO_ONE = (0.0, 1.0), (-1.0, 1.0)
NORM_GROUPS = 32
CODEBOOK = "quantize.embedding.weight"
TRAINING_ONLY = ("loss.",)  # taming's discriminator and perceptual network
NUM_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Layout:
    """Names of one kind of state dict. {level} counts from the pictures, {turned} from the codes, {block} from 0."""

    family: str
    title: str
    pixels: tuple  # values of black and white
    attention: bool | None  # whether there must be some; None: as it is
    down: str = "down.{level}.block.{block}"
    down_attention: str = "down.{level}.attn.{block}"
    downsample: str | None = "down.{level}.downsample.conv"
    up: str = "up.{level}.block.{block}"
    up_attention: str = "up.{level}.attn.{block}"
    upsample: str = "up.{level}.upsample.conv"
    middle: str = "mid.block_{block1}"
    middle_attention: str = "mid.attn_1"
    norm_out: str = "norm_out"
    inner: tuple = (("shortcut", "nin_shortcut"), ("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj_out"))
    without_bias: str = "(?!)"  # our tensors that have no counterpart and are zero


MASKGIT_BIASES = r"encoder\.conv_in\.bias|.*\.conv[12]\.bias"
LAYOUTS = {
    "openmuse": Layout("taming", "openMUSE VQGANModel (vqgan-f16-8192-laion)", ZERO_TO_ONE, False),
    "taming": Layout("taming", "taming-transformers VQModel", MINUS_ONE_TO_ONE, True),
    "diffusers": Layout(
        "taming", "diffusers VQModel (aMUSEd)", ZERO_TO_ONE, None,
        down="down_blocks.{level}.resnets.{block}", down_attention="down_blocks.{level}.attentions.{block}",
        downsample="down_blocks.{level}.downsamplers.0.conv", up="up_blocks.{turned}.resnets.{block}",
        up_attention="up_blocks.{turned}.attentions.{block}", upsample="up_blocks.{turned}.upsamplers.0.conv",
        middle="mid_block.resnets.{block}", middle_attention="mid_block.attentions.0", norm_out="conv_norm_out",
        inner=(("shortcut", "conv_shortcut"), ("norm", "group_norm"), ("query", "to_q"), ("key", "to_k"),
               ("value", "to_v"), ("out", "to_out.0")),
    ),
    "maskgit": Layout("maskgit", "openMUSE MaskGitVQGAN (maskgit-vqgan-imagenet-f16-256)", ZERO_TO_ONE, False,
                      downsample=None, upsample="up.{level}.upsample_conv", middle="mid.{block}",
                      without_bias=MASKGIT_BIASES),
    "mage": Layout("maskgit", "MAGE VQModel (vqgan_jax_strongaug)", ZERO_TO_ONE, False, downsample=None,
                   without_bias=MASKGIT_BIASES),
}  # fmt: skip


class Misfit(ValueError):
    """A state dict is not of a layout. `count` keys speak against it, by default those that are named."""

    def __init__(self, layout, wrong, count=None):
        self.count = len(wrong) if count is None else count
        more = f" and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
        super().__init__(f"not {layout.title}: {'; '.join(wrong[:NUM_NAMED])}{more}")


def find(tensors, norm_groups=NORM_GROUPS):
    """Name of the layout that fits every key. Raises ValueError naming the nearest one and what does not fit it."""
    shapes, misfits = {name: tensor.to("meta") for name, tensor in tensors.items()}, {}
    for name, layout in LAYOUTS.items():
        try:
            translate(shapes, layout, norm_groups=norm_groups)
            return name
        except Misfit as error:
            misfits[name] = error
    nearest = min(misfits, key=lambda name: misfits[name].count)
    raise ValueError(f"no known layout ({', '.join(LAYOUTS)}); nearest is {nearest}: {misfits[nearest]}")


def translate(tensors, layout, image_size=256, norm_groups=NORM_GROUPS):
    """Their state dict in our names.

    Args:
      tensors: dict[str, Tensor]; on the device "meta" for the check of names and shapes alone.

    Returns:
      (VqganConfig, dict[str, Tensor]), float32, pixels as the layout has them.

    Raises:
      Misfit: naming the first keys that are absent, have another shape, or have no place.
      ValueError: sizes that make no network, such as an image_size that does not fit.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(TRAINING_ONLY)}
    config = read_config(tensors, layout, image_size, norm_groups)
    with torch.device("meta"):
        ours = VQGAN(config).state_dict()
    names = their_names(config, layout)
    wrong, found = [], {}
    for name, meta in ours.items():
        if name not in names:
            found[name] = torch.zeros(meta.shape)
        elif names[name] not in tensors:
            wrong.append(f"{names[name]} is absent")
        elif not _same_shape(tensors[names[name]], meta):
            wrong.append(f"{names[name]} is {tuple(tensors[names[name]].shape)}, expected {tuple(meta.shape)}")
        else:
            found[name] = tensors[names[name]].reshape(meta.shape).float()
    strange = sorted(set(tensors) - set(names.values()))
    wrong += [f"{name} has no place" for name in strange]
    if layout.attention is not None and layout.attention != has_attention(config):
        wrong.append(f"encoder.{layout.middle_attention} is {'absent' if layout.attention else 'there'}")
    if wrong:
        raise Misfit(layout, wrong)
    return config, found


def has_attention(config):
    return bool(config.middle_attention or config.attention_levels)


def _same_shape(theirs, ours):
    """A product with a matrix may stand for a 1x1 convolution."""
    return theirs.shape == ours.shape or (*theirs.shape, 1, 1) == ours.shape


def read_config(tensors, layout, image_size=256, norm_groups=NORM_GROUPS):
    """The VqganConfig of a state dict, from its shapes. Raises Misfit where the first ones needed are absent."""
    first = ["encoder." + layout.down.format(level=0, block=0) + ".conv1.weight", "encoder.conv_in.weight",
             "encoder.conv_out.weight", CODEBOOK]  # fmt: skip
    absent = [f"{name} is absent" for name in first if name not in tensors]
    if absent:
        raise Misfit(layout, absent, len(tensors))
    blocks = _numbers(tensors, layout.down + ".conv1.weight")  # (level, block)
    levels = range(max(level for level, _ in blocks) + 1)
    widths = [_channels(tensors, "encoder." + layout.down.format(level=n, block=0) + ".conv1.weight") for n in levels]
    channels = _channels(tensors, "encoder.conv_in.weight")
    wrong = [f"level {n} has {width} channels" for n, width in enumerate(widths) if not width or width % channels]
    if wrong or tensors["encoder.conv_in.weight"].dim() != 4:
        raise Misfit(layout, wrong or ["encoder.conv_in.weight is no convolution"], len(tensors))
    low, high = layout.pixels
    attention = _numbers(tensors, f"{layout.down_attention}.{dict(layout.inner)['key']}.weight")
    return VqganConfig(
        image_size=image_size, family=layout.family, channels=channels,
        attention_levels=tuple(sorted({level for level, _ in attention})),
        middle_attention=any(name.startswith(f"encoder.{layout.middle_attention}.") for name in tensors),
        bottleneck_dim=_channels(tensors, "encoder.conv_out.weight"), norm_groups=norm_groups,
        channel_multipliers=tuple(width // channels for width in widths),
        num_res_blocks=sum(level == 0 for level, _ in blocks), latent_dim=tensors[CODEBOOK].shape[-1],
        codebook_size=len(tensors[CODEBOOK]), pixel_low=low, pixel_high=high,
    )  # fmt: skip


def _channels(tensors, name):
    return tensors[name].shape[0] if name in tensors else 0


def _numbers(tensors, pattern):
    """{(level, block)} of the encoder's keys that are of the pattern."""
    found = re.compile(("encoder." + pattern).replace(".", r"\.").format(level=r"(\d+)", block=r"(\d+)"))
    return {tuple(map(int, match.groups())) for match in map(found.fullmatch, tensors) if match}


def their_names(config, layout):
    """Our name of each tensor -> theirs; those that are zero because they have none are left out."""
    with torch.device("meta"):
        model = VQGAN(config)
    inner = dict(layout.inner)
    names = {"codebook.weight": CODEBOOK}
    for part in ("encoder", "decoder"):
        network = getattr(model, part)
        places = iter(_places(config, layout, part))
        for name, module in network.named_children():
            if name != "stages":
                theirs = {"to_codes": "quant_conv", "from_codes": "post_quant_conv"}.get(name)
                theirs = theirs or f"{part}.{layout.norm_out if name == 'norm_out' else name}"
                names |= {f"{part}.{name}.{leaf}": f"{theirs}.{leaf}" for leaf in module.state_dict()}
        for number, stage in enumerate(network.stages):
            if not stage.state_dict():
                continue
            place = f"{part}.{next(places)}"
            for leaf in stage.state_dict():
                child, kind = leaf.split(".")
                below = f".{inner.get(child, child)}" if isinstance(stage, (ResBlock, Attention)) else ""
                names[f"{part}.stages.{number}.{leaf}"] = f"{place}{below}.{kind}"
    return {ours: theirs for ours, theirs in names.items() if not re.fullmatch(layout.without_bias, ours)}


def _places(config, layout, part):
    """Their names of the stages with weights of one part, in the order of ours."""
    last, taming = len(config.channel_multipliers) - 1, config.family == "taming"
    middle = [layout.middle.format(block=n, block1=n + 1) for n in range(num_middle_blocks(config))]
    middle[1:1] = [layout.middle_attention] if config.middle_attention else []
    places, encoder = [], part == "encoder"
    for level in range(last + 1) if encoder else range(last, -1, -1):
        at = {"level": level, "turned": last - level}
        for block in range(config.num_res_blocks + (taming and not encoder)):
            places.append((layout.down if encoder else layout.up).format(**at, block=block))
            if level in config.attention_levels:
                places.append((layout.down_attention if encoder else layout.up_attention).format(**at, block=block))
        if encoder and layout.downsample and level < last:
            places.append(layout.downsample.format(**at))
        if not encoder and level > 0:
            places.append(layout.upsample.format(**at))
    return places + middle if encoder else middle + places
