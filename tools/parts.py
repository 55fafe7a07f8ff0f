"""The parts of a training step, and a range around what belongs to each: for profiles and for the TPU compiler."""

import contextlib
from unittest import mock

from itit import inference, objectives
from itit import train_step as step_lib

T5, VQGAN, T2I, I2T = "T5 of the texts", "VQGAN", "t2i", "i2t + i2i"
T2I2T, I2T2I = "t2i2t ", "i2t2i "  # and one of the next four
# "final": the second training pass, with the estimator of the text-image-text cycle.
SYNTHESIS, MIDDLE, FINAL, FINAL_T5 = "synthesis", "middle", "final", "final, with T5"
T2T, I2I, OPTIMIZER, REST = "t2t", "i2i, unpaired", "optimizer, EMA", "rest"
# In the order of the tables.
PARTS = (T5, VQGAN, T2I, I2T, *(T2I2T + x for x in (SYNTHESIS, MIDDLE, FINAL)),
         *(I2T2I + x for x in (SYNTHESIS, MIDDLE, FINAL_T5)), T2T, I2I, OPTIMIZER, REST)  # fmt: skip
# Name of a pass's masking -> the part that `objectives.t2i` is of; the image-text-image cycle ends in it, too.
IMAGE_PARTS = {"t2i": T2I, "i2i": I2I, "i2t2i/second": I2T2I + FINAL_T5}


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
        (step_lib, "encode_text", T5), (objectives, "i2t", I2T), (objectives, "t2t", T2T),
        (objectives, "t2i", lambda *args: IMAGE_PARTS[passes[id(args[3])]]),
        (objectives, "t2i2t", T2I2T + FINAL), (inference, "generate", T2I2T + SYNTHESIS),
        (objectives, "_reconstruct_image", T2I2T + MIDDLE), (objectives, "i2t2i", I2T2I + FINAL_T5),
        (inference, "caption_greedy", I2T2I + SYNTHESIS), (objectives, "_reconstruct_text", I2T2I + MIDDLE),
        (state.optimizer, "step", OPTIMIZER), *([(state.ema, "update", OPTIMIZER)] if state.ema else []),
        *([(state.vqgan, "tokenize", VQGAN)] if state.vqgan is not None else []),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(step_lib, "compute_losses", compute_losses))
        for owner, name, part in places:
            stack.enter_context(mock.patch.object(owner, name, ranged(getattr(owner, name), part)))
        stack.enter_context(enter(REST))
        yield
