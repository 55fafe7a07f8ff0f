"""A frozen text encoder whose blocks the processes of a node share: the same features, and a share of the numbers."""

import os

import numpy as np
import pytest
import torch

from itit.backends import split
from itit.backends.connect import connect
from itit.backends.processes import launched
from tests.helpers import processes
from tests.helpers.backend_parity import config_of
from tests.helpers.tiny import make_state


def encoded(config, ids, embeds, on_node=None):
    """Features of texts, of soft ones with the gradient, and the numbers of blocks that this process keeps."""
    if on_node:
        os.environ["LOCAL_WORLD_SIZE"] = str(on_node)
    with launched(config.train) as started:
        backend = connect(config.train, started)
        t5 = backend.adopt(make_state(config, 1).t5.requires_grad_(False))
        embeds = torch.from_numpy(embeds).requires_grad_()
        features = t5(torch.from_numpy(ids)), t5(embeds=embeds)
        features[1].square().sum().backward()
        found = [x.detach().numpy() for x in (*features, embeds.grad)]
        backend.hosts.close()
        return found, sum(x.numel() for x in (*t5.blocks.parameters(), *t5.blocks.buffers()))


@pytest.mark.parametrize("count, on_node", [(3, 3), (4, 2)])
def test_a_text_encoder_in_parts_is_the_whole_one(count, on_node):
    config = config_of(backend="cpu", shard_text_encoder=True)
    ids, embeds = np.random.default_rng().integers(2, 40, (2, 8)), torch.randn(2, 8, config.t5.dim).numpy()
    wanted, whole = encoded(config, ids, embeds)
    results = processes.results(processes.launch(encoded, count, config, ids, embeds, on_node))
    assert all(np.array_equal(x, y) for found, _ in results for x, y in zip(found, wanted, strict=True))
    spare = on_node * config.t5.num_layers
    assert all(whole <= on_node * kept < whole + on_node * spare for _, kept in results)


def test_nodes_with_different_numbers_of_processes(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="^--shard_text_encoder: 2 of 3 processes are on this node: all must have as"):
        split.of_node(3)
