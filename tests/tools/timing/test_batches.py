"""tools.timing.batches: ids in range, texts that end as texts do, the same for the same seed."""

import torch

from itit.tasks import TASKS
from itit.train_step import tasks
from tests.helpers.tiny import make_config
from tools.timing.batches import random_batch


def test_random_batches():
    config = make_config(**{f"{task}_batch": 64 for task in TASKS})
    m, batch = config.model, random_batch(config, tasks(config, 10**9), "cpu")
    assert {key.partition("/")[0] for key in batch} == set(TASKS)
    for key, ids in batch.items():
        if key.endswith("image_ids"):
            assert ids.shape == (64, m.num_image_tokens) and ids.min() >= 0 and ids.max() < m.codebook_size
            continue
        assert ids.shape == (64, m.num_text_tokens) and ids.max() < m.vocab_size and not (ids == m.bos_id).any()
        ended = (ids == 1).cumsum(1) - (ids == 1).long()
        assert bool(((ids == 1).sum(1) == 1).all()) and torch.equal(ended > 0, ids == 0)
    again = random_batch(config, tasks(config, 10**9), "cpu")
    assert all(torch.equal(again[key], ids) for key, ids in batch.items())
