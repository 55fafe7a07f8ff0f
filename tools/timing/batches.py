"""What measurements run on: settings of flagfiles, random batches of ready ids."""

import sys

import torch
from absl import flags as absl_flags

from itit import config as config_lib
from itit import flagfiles, flags, objectives
from itit.tasks import TASKS
from itit.train_step import tasks
from itit.training import taken


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


def read_config(flagfile, arguments, batch):
    """The resolved Config of a flagfile with further arguments, each active task at `batch` rows unless that is 0.

    Of weights that it names only the sizes are taken, where they are there: random ones take the same time.

    Raises ValueError, one line, for a flagfile that is not there or holds what is no setting.
    """
    values = absl_flags.FlagValues()
    flags.define(flag_values=values)
    lines = flagfiles.read(flagfile)
    try:
        flags.parse(["bench", *lines, *arguments], values)
        config = taken.settle(flags.from_flags(flag_values=values), need=False)
    except ValueError as error:
        raise ValueError(f"{flagfile}: {error}") from None
    config = config_lib.replace(config, vqgan="", t5_weights="")
    sizes = {f"{task}_batch": batch for task in tasks(config, sys.maxsize)} if batch else {}
    return config_lib.replace(config, **sizes).resolve()
