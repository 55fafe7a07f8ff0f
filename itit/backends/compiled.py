"""--compile: torch.compile of the methods that run many times, which a network names itself (`repeated`): its blocks,
all by what is compiled for one, in training and in drawing pictures; and a token of a text, with the blocks inside.
"""

import functools

import torch

from itit import ops

KINDS = 512  # of arguments of a method: rows, tokens, masks, with gradients and without


def check(device):
    """Raises ValueError, one line, where torch.compile does not work on a torch.device."""
    ops.load(device.type)  # imports are nothing to compile
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = KINDS
    try:
        _compile(lambda x: x.exp() + 1, device)(torch.zeros(8, device=device))
    except Exception as error:
        error = getattr(error, "inner_exception", error)
        said = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"--compile: torch.compile does not work here on {device.type}: {said[0]}") from None


def compile_repeated(module, device):
    """Compiles what the networks below `module` name; what they compute with a `look` of a caller's is left out."""
    for part in module.modules():
        for name in getattr(part, "repeated", ()):
            plain = getattr(part, name)
            setattr(part, name, functools.partial(_run, plain, _compile(plain, device)))


def _run(plain, compiled, *args, look=None):
    return compiled(*args) if look is None else plain(*args, look=look)


def _compile(function, device):
    # On a processor, where that costs little, dropout draws as without --compile.
    return torch.compile(function, options={"fallback_random": device.type == "cpu"})
