"""What these tests share: meshes of the virtual devices."""

import os

from itit.config import TrainConfig
from itit.xla import mesh

NUM_DEVICES = int(os.environ["CPU_NUM_DEVICES"])
MESHES = {1: [(1, 1)], 8: [(8, 1), (4, 2), (1, 8)]}[NUM_DEVICES]


def connect(data, fsdp, **values):
    return mesh.connect(TrainConfig(mesh_data=data, mesh_fsdp=fsdp, xla_cache="", **values))
