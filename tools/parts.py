"""The parts of a training step, and a range around what belongs to each: for profiles and for the TPU compiler."""

import contextlib
from unittest import mock

from itit import inference, objectives
from itit import train_step as step_lib

T5, VQGAN, OPTIMIZER, REST = "T5 of the texts", "VQGAN", "optimizer, EMA", "rest"
# Name of a pass's masking -> the part that `objectives.t2i` is of; the image-text-image cycle ends in it, too.
IMAGE_PARTS = {"t2i": "t2i", "i2i": "i2i, unpaired", "i2t2i/second": "i2t2i final, with T5"}
# In the order of the table. "final": the second training pass, with the estimator of the text-image-text cycle.
PARTS = (
    T5, "t2i", "i2t + i2i", "t2i2t synthesis", "t2i2t middle", "t2i2t final", "i2t2i synthesis", "i2t2i middle",
    IMAGE_PARTS["i2t2i/second"], "t2t", IMAGE_PARTS["i2i"], OPTIMIZER, REST,
)  # fmt: skip


@contextlib.contextmanager
def labelled(state, enter, leave=None):
    """Inside, what belongs to a part runs in a range of its name. The innermost range counts.

    Args:
      enter: name -> context manager, the range.
      leave: what is done to the result of a part, (result, name) -> result; by default nothing.
    """
    passes = {}  # id of a Masking -> name of its pass

    def ranged(function, part):
        def run(*args, **kwargs):
            name = part if isinstance(part, str) else part(*args)
            with enter(name):
                result = function(*args, **kwargs)
            return leave(result, name) if leave else result

        return run

    def compute_losses(state, part, *args):
        passes.update({id(masking): name for name, masking in part.maskings.items()})
        return compute(state, part, *args)

    compute = step_lib.compute_losses
    places = [
        (step_lib, "encode_text", T5), (objectives, "i2t", "i2t + i2i"), (objectives, "t2t", "t2t"),
        (objectives, "t2i", lambda *args: IMAGE_PARTS[passes[id(args[3])]]),
        (objectives, "t2i2t", "t2i2t final"), (inference, "generate", "t2i2t synthesis"),
        (objectives, "_reconstruct_image", "t2i2t middle"), (objectives, "i2t2i", IMAGE_PARTS["i2t2i/second"]),
        (inference, "caption_greedy", "i2t2i synthesis"), (objectives, "_reconstruct_text", "i2t2i middle"),
        (state.optimizer, "step", OPTIMIZER), *([(state.ema, "update", OPTIMIZER)] if state.ema else []),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(step_lib, "compute_losses", compute_losses))
        for owner, name, part in places:
            stack.enter_context(mock.patch.object(owner, name, ranged(getattr(owner, name), part)))
        stack.enter_context(enter(REST))
        yield
