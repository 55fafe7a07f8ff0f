"""The runner that captures nothing: it calls, and hands numbers through."""

import torch

from itit.eager import Eager


def test_it_calls_the_function_with_what_it_is_given():
    run, state = Eager(), torch.zeros(2)

    def add(tensor, number, scale):
        tensor += scale * number
        return tensor, "done"

    result, word = run(add, state, run.number(3), 2.0, updates=[state])
    assert result is state and word == "done" and run.unroll == 1
    owned = run.own(torch.nn.Linear(1, 1), {"a": (torch.nn.Parameter(torch.zeros(3, 2)), torch.bfloat16)})["a"]
    assert owned.shape == (3, 2) and owned.dtype == torch.bfloat16 and not owned.requires_grad
    assert state.tolist() == [6.0, 6.0]
