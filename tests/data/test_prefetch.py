"""Batches ahead of their step: the same ones, in order, and errors where they belong."""

import threading

import numpy as np
import pytest

from itit.data.prefetch import prefetch
from itit.data.streams import Streams
from tests.data.test_streams import make_config, write_ids


def test_the_same_batches_and_errors(tmp_path):
    config = make_config(paired_data=write_ids(tmp_path))
    streams, ahead = Streams(config), prefetch(Streams(config), 5, 2)
    for step in range(5, 9):
        for key, value in next(ahead).items():
            np.testing.assert_array_equal(value, streams.batch(step)[key])
    ahead.close()

    gate = threading.Event()

    class Failing:
        def batch(self, step):
            gate.wait()
            if step == 2:
                raise ValueError("the third")
            return step

    ahead = prefetch(Failing(), 0, 2)
    threading.Timer(0.3, gate.set).start()
    assert next(ahead) == 0 and ahead.wait_seconds > 0.25
    assert next(ahead) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="the third"):
            next(ahead)
    ahead.close()


def test_batches_are_made_at_once_and_in_order():
    """Two wait for one another, so one thread alone would never end; and no more are begun than asked for."""
    meeting, begun = threading.Barrier(2), []

    class Meeting:
        def batch(self, step):
            begun.append(step)
            meeting.wait(timeout=60)
            return step

    ahead = prefetch(Meeting(), 4, 2)
    assert [next(ahead) for _ in range(6)] == list(range(4, 10))
    ahead.close()
    assert set(range(4, 10)) <= set(begun) <= set(range(4, 12))
