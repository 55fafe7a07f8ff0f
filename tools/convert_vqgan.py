"""`python -m tools.convert_vqgan --checkpoint=PATH --output=DIR`: a public image tokenizer for --vqgan.

PATH is a file (safetensors, or a pickled .ckpt, .bin, .pt, .pth, of which tensors alone are read) or a folder with one.
Which network it is, and its sizes, are found by the names and shapes of its tensors (see vqgan_layouts.py); a file that
fits none is refused, with the first names that do not fit. Written: model.safetensors (float32), config.json, and
hashes.json, which also holds the SHA-256 of the file read.

What names and shapes cannot tell: the range of pixels, which is that of the layout's public weights unless
--pixel_range says otherwise, and the number of norm groups, 32 unless a config.json beside the weights says otherwise.
A wrong one shows at once in `tools.reconstruct`.
"""

import dataclasses
import os

import torch
from absl import flags

from itit import storage
from itit.checkpoint import weightsdir
from itit.checkpoint.tensorfile import TensorFile
from itit.flags import run_main
from itit.untrusted import parse_json
from tools.convert import pickled
from tools.convert import vqgan_layouts as layouts
from tools.data.splits import new_folder

PIXEL_RANGES = {"0,1": layouts.ZERO_TO_ONE, "-1,1": layouts.MINUS_ONE_TO_ONE}
SAFETENSORS = ".safetensors"


def locate(path):
    """The file of tensors that `path` is or holds; safetensors before pickles, full precision before half.

    Raises ValueError where there is none, or more than one to choose from.
    """
    if not os.path.isdir(path):
        if not path.endswith((SAFETENSORS, *pickled.SUFFIXES)):
            raise ValueError(f"{path}: must be a folder or end in {SAFETENSORS}, {', '.join(pickled.SUFFIXES)}")
        return path
    for suffixes in (SAFETENSORS, pickled.SUFFIXES):
        found = [name for name in storage.list_dir(path) if name.endswith(suffixes)]
        found = [name for name in found if ".fp16." not in name] or found
        if len(found) > 1:
            raise ValueError(f"{path}: holds {', '.join(found)}; name the file")
        if found:
            return storage.join(path, found[0])
    raise ValueError(f"{path}: no {SAFETENSORS}, {', '.join(pickled.SUFFIXES)} in it")


def read(path):
    """dict[str, Tensor] of a file. Raises ValueError for a damaged one."""
    if not path.endswith(SAFETENSORS):
        return pickled.read(path)
    with TensorFile(path) as file:
        return file.read_all()[0]


def norm_groups_beside(path):
    """What a config.json beside the weights says of norms, as diffusers writes it. Raises ValueError, naming it."""
    config_path = storage.join(os.path.dirname(path), weightsdir.CONFIG)
    if not storage.exists(config_path):
        return layouts.NORM_GROUPS
    found = parse_json(storage.read_small(config_path), config_path).get("norm_num_groups", layouts.NORM_GROUPS)
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{config_path}: norm_num_groups={found!r}: must be a whole number above 0")
    return found


def convert(path, output, layout_name, pixel_range, image_size):
    """Converts one tokenizer. Returns its VqganConfig."""
    path = locate(path)
    tensors, norm_groups = read(path), norm_groups_beside(path)
    try:
        name = layouts.find(tensors, norm_groups) if layout_name == "auto" else layout_name
        config, weights = layouts.translate(tensors, layouts.LAYOUTS[name], image_size, norm_groups)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if pixel_range:
        low, high = PIXEL_RANGES[pixel_range]
        config = dataclasses.replace(config, pixel_low=low, pixel_high=high)
    elif name == "diffusers" and layouts.has_attention(config):
        raise ValueError(f"{path}: a VQModel with attention is not aMUSEd's; say what its pixels are: "
                         f"--pixel_range={' or '.join(PIXEL_RANGES)}")  # fmt: skip
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {key} holds NaN or infinity")
    shapes = {key: (torch.float32, tensor.shape) for key, tensor in weights.items()}
    source = {os.path.basename(path): {"bytes": storage.size(path), "sha256": storage.sha256(path)}, "layout": name}
    with new_folder(output, repeatable=True) as staging:
        weightsdir.stream(staging, shapes, weights.values(), config, source=source)
    side, grid, size = config.image_size, config.grid, sum(tensor.numel() for tensor in weights.values())
    print(
        f"{output}: layout {name}, {config.codebook_size} codes of width {config.latent_dim}, {side} x {side} pixels "
        f"from {config.pixel_low:g} to {config.pixel_high:g}, {grid} x {grid} tokens, {size / 1e6:.1f} M parameters"
    )
    return config


def define_flags():
    flags.DEFINE_string("checkpoint", None, "File of the public weights, or the folder that holds it.", required=True)
    flags.DEFINE_string("output", None, "New folder, for --vqgan.", required=True)
    flags.DEFINE_enum("layout", "auto", ("auto", *layouts.LAYOUTS), "Whose names the tensors have.")
    flags.DEFINE_enum("pixel_range", "", ("", *PIXEL_RANGES), "Values of black and white; empty: as the layout's.")
    flags.DEFINE_integer("image_size", 256, "Side of the pictures in pixels that it will be used with.", lower_bound=1)


def main(_):
    flag = flags.FLAGS
    convert(flag.checkpoint, flag.output, flag.layout, flag.pixel_range, flag.image_size)


if __name__ == "__main__":
    define_flags()
    run_main(main)
