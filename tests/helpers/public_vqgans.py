"""Public image tokenizers for tests: random state dicts under exactly their names, and their networks as straight lines
of torch.nn.functional on those dicts, written from the published descriptions and sharing nothing with `itit`.

Shapes: B batch, S picture side, G grid side, C codes, D code width, z channels around the codes.
"""

import torch
import torch.nn.functional as F

GROUPS = 32


class Names(dict):
    """A state dict that grows by layers, with weights that keep numbers near 1."""

    def conv(self, name, out, inside, kernel=3, bias=True):
        self[f"{name}.weight"] = torch.randn(out, inside, kernel, kernel) * (inside * kernel**2) ** -0.5
        if bias:
            self[f"{name}.bias"] = torch.randn(out) * 0.2

    def norm(self, name, width):
        self[f"{name}.weight"], self[f"{name}.bias"] = 1 + torch.randn(width) * 0.2, torch.randn(width) * 0.2

    def block(self, name, before, after, taming):
        self.norm(f"{name}.norm1", before)
        self.conv(f"{name}.conv1", after, before, bias=taming)
        self.norm(f"{name}.norm2", after)
        self.conv(f"{name}.conv2", after, after, bias=taming)
        if before != after:
            self.conv(f"{name}.nin_shortcut", after, before if taming else after, 1, bias=taming)

    def attention(self, name, width):
        self.norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", width, width, 1)


def taming(widths=(32, 32, 64, 64, 96), num_blocks=2, z=24, codes=200, code_width=12, attention=(4,)):
    """taming-transformers' VQModel; without `attention` openMUSE's VQGANModel. The first level has widths[0]."""
    state, last = Names(), len(widths) - 1
    state.conv("encoder.conv_in", widths[0], 3)
    width = widths[0]
    for level, out in enumerate(widths):
        for block in range(num_blocks):
            state.block(f"encoder.down.{level}.block.{block}", width, out, True)
            width = out
            if level in attention:
                state.attention(f"encoder.down.{level}.attn.{block}", width)
        if level < last:
            state.conv(f"encoder.down.{level}.downsample.conv", width, width)
    state.conv("decoder.conv_in", width, z)
    for part in ("encoder", "decoder"):
        state.block(f"{part}.mid.block_1", width, width, True)
        if attention:
            state.attention(f"{part}.mid.attn_1", width)
        state.block(f"{part}.mid.block_2", width, width, True)
    state.norm("encoder.norm_out", width)
    state.conv("encoder.conv_out", z, width)
    for level in reversed(range(len(widths))):
        for block in range(num_blocks + 1):
            state.block(f"decoder.up.{level}.block.{block}", width, widths[level], True)
            width = widths[level]
            if level in attention:
                state.attention(f"decoder.up.{level}.attn.{block}", width)
        if level > 0:
            state.conv(f"decoder.up.{level}.upsample.conv", width, width)
    state.norm("decoder.norm_out", width)
    state.conv("decoder.conv_out", 3, width)
    state["quantize.embedding.weight"] = torch.randn(codes, code_width)
    state.conv("quant_conv", code_width, z, 1)
    state.conv("post_quant_conv", z, code_width, 1)
    return dict(state)


def maskgit(widths=(32, 32, 64, 64, 96), num_blocks=2, codes=200, code_width=12, mage=False):
    """openMUSE's MaskGitVQGAN, or MAGE's VQModel: one network under two sets of names."""
    state, last = Names(), len(widths) - 1
    state.conv("encoder.conv_in", widths[0], 3, bias=False)
    width = widths[0]
    for level, out in enumerate(widths):
        for block in range(num_blocks):
            state.block(f"encoder.down.{level}.block.{block}", width, out, False)
            width = out
    state.conv("decoder.conv_in", width, code_width)
    for part in ("encoder", "decoder"):
        for block in range(num_blocks):
            state.block(f"{part}.mid.block_{block + 1}" if mage else f"{part}.mid.{block}", width, width, False)
    state.norm("encoder.norm_out", width)
    state.conv("encoder.conv_out", code_width, width, 1)
    for level in reversed(range(last + 1)):
        for block in range(num_blocks):
            state.block(f"decoder.up.{level}.block.{block}", width, widths[level], False)
            width = widths[level]
        if level > 0:
            state.conv(f"decoder.up.{level}.upsample{'.conv' if mage else '_conv'}", width, width)
    state.norm("decoder.norm_out", width)
    state.conv("decoder.conv_out", 3, width)
    state["quantize.embedding.weight"] = torch.randn(codes, code_width)
    return dict(state)


def spread_codes(state, features):
    """Puts the codes among the features [B, D, G, G] of a few pictures, so that many of them are used."""
    outputs = features.movedim(1, -1).flatten(0, 2)
    rows = torch.randint(len(outputs), (len(state["quantize.embedding.weight"]),))
    codes = outputs[rows] + torch.randn(len(rows), outputs.shape[1]) * outputs.std(0) * 0.5
    state["quantize.embedding.weight"] = codes


class Reference:
    """A network by the names in a state dict: features before rounding, ids, and pictures of ids."""

    def __init__(self, state):
        self.state = state
        self.taming = "quant_conv.weight" in state

    def conv(self, x, name, **kwargs):
        weight = self.state[f"{name}.weight"]
        kwargs = kwargs or {"padding": weight.shape[-1] // 2}
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), **kwargs)

    def norm(self, x, name):
        return F.group_norm(x, GROUPS, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def swish(self, x):
        return x * torch.sigmoid(x)

    def block(self, x, name):
        y = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        y = self.conv(self.swish(self.norm(y, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.nin_shortcut.weight" in self.state:
            # taming: on what enters; MaskGIT and its ports: on what the branch made.
            return y + self.conv(x if self.taming else y, f"{name}.nin_shortcut")
        return y + x

    def attention(self, x, name):
        if f"{name}.norm.weight" not in self.state:
            return x
        y = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(y, f"{name}.{part}").flatten(2) for part in "qkv")  # [B, channels, G * G]
        share = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(-1)
        return x + self.conv(torch.einsum("bij,bcj->bci", share, v).view_as(x), f"{name}.proj_out")

    def blocks(self, x, name, kind="block"):
        count = 0
        while f"{name}.{kind}.{count}.conv1.weight" in self.state:
            x = self.attention(self.block(x, f"{name}.{kind}.{count}"), f"{name}.attn.{count}")
            count += 1
        return x

    def middle(self, x, part):
        if f"{part}.mid.0.conv1.weight" in self.state:
            return self.blocks(x, part, "mid")
        x = self.attention(self.block(x, f"{part}.mid.block_1"), f"{part}.mid.attn_1")
        return self.block(x, f"{part}.mid.block_2")

    def levels(self):
        return max(int(name.split(".")[2]) for name in self.state if name.startswith("encoder.down."))

    def features(self, images):
        x = self.conv(images, "encoder.conv_in")
        for level in range(self.levels() + 1):
            x = self.blocks(x, f"encoder.down.{level}")
            if level < self.levels() and self.taming:
                padded = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1)
                padded[:, :, :-1, :-1] = x
                x = self.conv(padded, f"encoder.down.{level}.downsample.conv", stride=2)
            elif level < self.levels():
                x = F.avg_pool2d(x, 2)
        x = self.conv(self.swish(self.norm(self.middle(x, "encoder"), "encoder.norm_out")), "encoder.conv_out")
        return self.conv(x, "quant_conv") if self.taming else x

    def ids(self, images):
        outputs = self.features(images).movedim(1, -1).flatten(1, 2)  # [B, G * G, D]
        return torch.cdist(outputs.double(), self.state["quantize.embedding.weight"].double()[None]).argmin(-1)

    def pictures(self, ids, grid):
        x = F.embedding(ids, self.state["quantize.embedding.weight"]).unflatten(1, (grid, grid)).movedim(-1, 1)
        x = self.conv(self.conv(x, "post_quant_conv") if self.taming else x, "decoder.conv_in")
        x = self.middle(x, "decoder")
        for level in reversed(range(self.levels() + 1)):
            x = self.blocks(x, f"decoder.up.{level}")
            for name in (f"decoder.up.{level}.upsample.conv", f"decoder.up.{level}.upsample_conv"):
                if f"{name}.weight" in self.state:
                    x = self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2), name)
        return self.conv(self.swish(self.norm(x, "decoder.norm_out")), "decoder.conv_out")
