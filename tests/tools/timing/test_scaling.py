"""tools.bench --processes: the same global batch on real processes, in turns, and the ideal beside."""

from itit.tasks import only
from tests.helpers.tiny import make_config
from tools.timing import scaling, step_worker


def test_one_and_two_processes():
    config = make_config(**only("t2i"), depth=1, backend="cpu")
    for kind, seconds, busy in (step_worker.measure(config, 2), scaling.run(config, 2, (2,), rounds=1)[2]):
        assert kind == "cpu" and len(seconds) == len(busy) == 2 and min(seconds + busy) > 0


def test_the_table_is_of_the_quickest_steps():
    one, two = scaling.table({1: ("cpu", [3.0, 2.0], [2.5, 1.8]), 2: ("cpu", [1.25, 4.0], [2.0, 5.0])})[1:]
    assert one.split() == ["1", "cpu", "2.000", "2.000", "100%", "1.800", "100%"]
    assert two.split() == ["2", "cpu", "1.250", "1.000", "80%", "2.000", "90%"]
