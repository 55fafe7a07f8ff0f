"""Programs: called as they stand, or by the runner of their thread, with what it must know of them."""

import threading

import pytest
import torch

from itit.program import Eager, program, runner, running


class Noting(Eager):
    """Calls, and notes what; hands numbers over as tensors."""

    def __init__(self):
        self.calls = []

    def __call__(self, function, *args, updates=()):
        self.calls.append((function.__name__, args, updates))
        return function(*args)

    def number(self, value):
        return torch.tensor(value)


@program
def double(x):
    return 2 * x


@program(varying=("rate",), updates=lambda state, *_: state.values())
def step(state, rate, note):
    for x in state.values():
        x += rate
    return double(rate), note


def test_a_runner_that_captures_nothing_calls_and_hands_numbers_through():
    run, state = Eager(), torch.zeros(2)

    def add(tensor, number, scale):
        tensor += scale * number
        return tensor, "done"

    result, word = run(add, state, run.number(3), 2.0, updates=[state])
    assert result is state and word == "done" and run.unroll == 1
    owned = run.own(torch.nn.Linear(1, 1), {"a": (torch.nn.Parameter(torch.zeros(3, 2)), torch.bfloat16)})["a"]
    assert owned.shape == (3, 2) and owned.dtype == torch.bfloat16 and not owned.requires_grad
    assert state.tolist() == [6.0, 6.0]


def test_without_a_runner_a_program_is_its_function():
    state = {"a": torch.zeros(2)}
    assert step(state, 3, "x") == (6, "x") and state["a"].tolist() == [3.0, 3.0]
    assert step.__name__ == "step" and type(runner()) is Eager


def test_a_runner_is_told_what_changes_and_gets_numbers_as_it_wants_them():
    noting, state = Noting(), {"a": torch.zeros(2)}
    with running(noting):
        assert runner() is noting
        found, note = step(state, 3, "x")
    assert isinstance(found, torch.Tensor) and found.item() == 6 and note == "x"
    ((name, (given, rate, _), updates),) = noting.calls  # what a program calls is a part of it
    assert name == "step" and given is state and isinstance(rate, torch.Tensor)
    assert len(updates) == 1 and updates[0] is state["a"]
    assert double(1) == 2 and len(noting.calls) == 1


def test_the_innermost_runner_runs_and_the_one_before_comes_back():
    outer, inner = Noting(), Noting()
    with running(outer):
        with pytest.raises(ZeroDivisionError), running(inner):
            double(1)
            program(lambda: 1 / 0)()
        double(2)
    assert [len(noting.calls) for noting in (outer, inner)] == [1, 2]
    assert type(runner()) is Eager


def test_a_runner_is_its_threads_alone():
    """Requests of the demo are answered by threads, each with a model of its own."""
    barrier, noted = threading.Barrier(4), {}

    def answer(index):
        noted[index] = Noting()
        for turn in range(20):
            with running(noted[index]):
                barrier.wait()
                double(100 * index + turn)
        barrier.wait()
        double(-1)

    threads = [threading.Thread(target=answer, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, noting in noted.items():
        assert [args[0] for _, args, _ in noting.calls] == [100 * index + turn for turn in range(20)]
