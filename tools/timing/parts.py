"""The parts of a training step, and a range around what belongs to each: for profiles and for the TPU compiler."""

import contextlib
import itertools
from unittest import mock

from itit import inference, objectives
from itit import train_step as step_lib
from itit.tasks import TASKS

T5, VQGAN, OPTIMIZER, REST = "T5 of the texts", "VQGAN", "optimizer, EMA", "rest"
T2I2T, I2T2I = "t2i2t ", "i2t2i "  # and one of the next two
SYNTHESIS, MIDDLE = "synthesis", "middle"
# Task -> the part that is the computation of its losses, but for the middle of a cycle.
LOSS_OF = {name: task.title or name for name, task in TASKS.items()}
# In the order of the tables.
PARTS = (T5, VQGAN, *itertools.chain.from_iterable(
    [f"{name} {SYNTHESIS}", f"{name} {MIDDLE}", part] if TASKS[name].cycle else [part]
    for name, part in LOSS_OF.items()), OPTIMIZER, REST)  # fmt: skip


@contextlib.contextmanager
def labelled(state, enter, leave=None):
    """Inside, what belongs to a part runs in a range of its name. The innermost range counts.

    Args:
      enter: name -> context manager, the range.
      leave: what is done to the result of a part, (result, name) -> result; by default nothing.
    """

    def ranged(function, name):
        def run(*args, **kwargs):
            with enter(name):
                result = function(*args, **kwargs)
            return leave(result, name) if leave else result

        return run

    places = [
        (step_lib, "encode_text", T5), *((objectives, task, part) for task, part in LOSS_OF.items()),
        (inference, "generate", T2I2T + SYNTHESIS), (objectives, "_reconstruct_image", T2I2T + MIDDLE),
        (inference, "caption_greedy", I2T2I + SYNTHESIS), (objectives, "_reconstruct_text", I2T2I + MIDDLE),
        (state.optimizer, "step", OPTIMIZER), *([(state.ema, "update", OPTIMIZER)] if state.ema else []),
        *([(state.vqgan, "tokenize", VQGAN)] if state.vqgan is not None else []),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(mock.patch.object(owner, name, ranged(getattr(owner, name), part)))
        stack.enter_context(enter(REST))
        yield
