"""Random batches of ready ids, for measurements."""

import torch

from itit import objectives
from itit.tasks import TASKS


def random_batch(config, active, device):
    """Ready ids for the tasks of a step: "task/field" -> int64 [B, N] or [B, L]; texts of any length."""
    m, batch = config.model, {}
    generator = torch.Generator().manual_seed(config.train.seed)
    slots = torch.arange(m.num_text_tokens)
    for task, rows in active.items():
        if TASKS[task].has_picture:
            batch[f"{task}/image_ids"] = torch.randint(
                m.codebook_size, (rows, m.num_image_tokens), generator=generator
            ).to(device)
        if TASKS[task].has_text:
            ids = torch.randint(3, m.bos_id, (rows, m.num_text_tokens), generator=generator)
            ends = torch.randint(1, m.num_text_tokens, (rows, 1), generator=generator)
            ids = ids.masked_fill(slots == ends, objectives.EOS).masked_fill(slots > ends, objectives.PAD)
            batch[f"{task}/text_ids"] = ids.to(device)
    return batch
