"""Frozen blocks of a network in parts, one a process of a node: a block's weights are gathered where it computes.

For T5-XXL, whose 9 GB stand beside the model on a small GPU: of its 24 blocks one or two are whole at a time.
"""

import functools
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call


@functools.cache
def of_node(count):
    """(process group of this node's processes, how many they are). All processes call it at the same time.

    Raises ValueError where nodes have different numbers of the `count` processes.
    """
    size = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count % size:
        raise ValueError(f"--shard_text_encoder: {size} of {count} processes are on this node: all must have as many")
    return (dist.new_subgroups(size)[0] if size < count else dist.group.WORLD), size


def split(module, group, count, waiting):
    """Puts a `Split` in the place of every block of a frozen module.

    Args:
      group: of the `count` processes that share them.
      waiting: a context manager around what waits for all (see `processes.Peers`).
    """
    for part in module.modules():
        blocks = getattr(part, "blocks", ())
        for number, block in enumerate(blocks):
            blocks[number] = Split(block, group, count, waiting)


class Split(nn.Module):
    """A block, of whose weights this process keeps its share, `own`."""

    def __init__(self, block, group, count, waiting):
        super().__init__()
        named = dict(block.named_parameters())
        self._shapes = {name: p.shape for name, p in named.items()}
        flat = torch.cat([p.detach().reshape(-1) for p in named.values()])
        size = -(-len(flat) // count)
        flat = nn.functional.pad(flat, (0, size * count - len(flat)))
        self.register_buffer("own", flat.view(count, size)[dist.get_rank(group)].clone(), persistent=False)
        self._block = (block.to("meta"),)  # no module of this one: its weights are none
        self._group, self._count, self._waiting = group, count, waiting

    def forward(self, *args):
        whole = self.own.new_empty(self._count * len(self.own))
        with self._waiting():
            dist.all_gather_into_tensor(whole, self.own, group=self._group)
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = whole[: sum(sizes)].split(sizes)
        weights = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return functional_call(self._block[0], weights, args)
