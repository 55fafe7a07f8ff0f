"""Pictures to ids on a mesh, with a last batch that is not full."""

import numpy as np
import pytest

from itit.backends.local import Local
from tests.tools.training.test_train_vqgan import save_random_vqgan
from tests.xla.devices.small import MESHES, connect
from tools.data import tokenizing


@pytest.mark.parametrize("data, fsdp", MESHES[:1])
def test_ids_are_those_of_the_processor(tmp_path, monkeypatch, data, fsdp):
    monkeypatch.setattr(tokenizing, "BATCH_SIZE", 8)
    folder, mesh = save_random_vqgan(tmp_path), connect(data, fsdp)
    pixels = list(np.random.default_rng().integers(0, 256, (21, 16, 16, 3), dtype=np.uint8))
    found = tokenizing.Pictures(folder, mesh).begin(pixels)()
    np.testing.assert_array_equal(found, tokenizing.Pictures(folder, Local("cpu")).begin(pixels)())
    assert len(mesh.sampler.graphs) == 1, "every batch has the same shape"
