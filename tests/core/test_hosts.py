"""What hosts tell each other, between real processes."""

import random
import threading
import time

import numpy as np
import pytest

from itit.hosts import Hosts
from tests.helpers import processes

COUNTS = (1, 2, 4)


def gather_often(hosts):
    found = []
    for turn in range(20):
        time.sleep(random.uniform(0, 0.005) * (hosts.index == turn % hosts.count))
        found.append(hosts.gather({"host": hosts.index, "turn": turn}))
    return found, hosts._store.num_keys() if hosts._store else 0


@pytest.mark.parametrize("count", COUNTS)
def test_every_host_has_the_values_of_all_in_order(count):
    expected = [[{"host": host, "turn": turn} for host in range(count)] for turn in range(20)]
    for found, num_keys in processes.run(gather_often, count):
        assert found == expected
        assert num_keys <= 3 * count + 1  # nothing piles up


def gather_apart(hosts):
    """Two threads at once; in turn a host is late on one line, and must not hold up what is said on the other."""
    beside, found = hosts.channel("save"), []

    def speak():
        for turn in range(10):
            time.sleep(0.3 * (hosts.index == turn % hosts.count))
            found.append(beside.gather(["beside", turn, hosts.index]))

    thread = threading.Thread(target=speak)
    thread.start()
    start = time.monotonic()
    said = [hosts.gather([turn, hosts.index]) for turn in range(10)]
    seconds = time.monotonic() - start
    still = thread.is_alive()
    thread.join()
    return said, found, still or seconds < 3


@pytest.mark.parametrize("count", [1, 3])
def test_another_thread_speaks_on_a_line_of_its_own(count):
    for said, found, apart in processes.run(gather_apart, count):
        assert said == [[[turn, host] for host in range(count)] for turn in range(10)]
        assert found == [[["beside", turn, host] for host in range(count)] for turn in range(10)] and apart


def any_of(hosts, told):
    return [hosts.any(hosts.index in turn) for turn in told]


@pytest.mark.parametrize("count", COUNTS)
def test_one_host_is_enough_for_all(count):
    told = [(), (0,), (count - 1,), tuple(range(count)), ()]
    assert processes.run(any_of, count, told) == [[False, True, True, True, False]] * count


def work(hosts, failing):
    def one():
        if hosts.index == failing:
            raise OSError(28, "No space left on device")
        return hosts.index * 10

    assert hosts.together(lambda: hosts.index) == list(range(hosts.count))
    try:
        found = hosts.together(one)
    except Exception as error:
        found = type(error), str(error)
    assert hosts.gather(1) == [1] * hosts.count  # they are still in step
    return found


def test_what_fails_on_one_host_fails_on_all():
    assert processes.run(work, 3, None) == [[0, 10, 20]] * 3
    named = ValueError, "host 1: [Errno 28] No space left on device"
    assert processes.run(work, 3, 1) == [named, (OSError, named[1].removeprefix("host 1: ")), named]
    assert processes.run(work, 1, 0) == [(OSError, "[Errno 28] No space left on device")]


def gone(hosts):
    if hosts.index == 1:
        raise SystemExit  # a host that dies, without a word
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="^host 0 of 2: another host is gone or slow: "):
        hosts.gather(1)
    return time.monotonic() - start


def test_a_host_that_is_gone_is_not_waited_for_forever():
    waited, nothing = processes.results(processes.start(gone_and_out, 2, timeout=1))
    assert 0.9 < waited < 30 and nothing is None


def gone_and_out(hosts):
    waited = gone(hosts)
    hosts._store = None  # closing would wait for the one that is gone, too
    return waited


def check_rows(hosts, rows):
    hosts.check_rows({task: np.array(places[hosts.index]) for task, places in rows.items()})


def test_hosts_that_feed_the_same_rows_are_refused():
    fine = {"t2i": [[0, 1], [2, 3]], "i2t": [[4, 5], [6, 7]]}
    assert processes.run(check_rows, 2, fine) == [None, None]
    for wrong in ([[4, 5], [6, 4]], [[4, 5], [4, 5]], [[4, 4], [6, 7]]):
        for error in processes.run(check_rows, 2, fine | {"i2t": wrong}):
            assert isinstance(error, ValueError)
            assert str(error) == "--i2t_batch: several of the 2 hosts feed the same rows"
    with pytest.raises(ValueError, match="--t2i_batch: several of the 1 hosts"):
        Hosts().check_rows({"t2i": np.array([3, 3])})


def check_same(hosts, values):
    hosts.check_same(values[hosts.index])


def test_hosts_that_were_started_otherwise_are_refused():
    base = {"--seed": "1", "t5_weights": "ab"}
    assert processes.run(check_same, 2, [base, dict(base)]) == [None, None]
    for other, said in (({"--seed": "2"}, "--seed: host 0 has 1, host 2 has 2"),
                        ({"vqgan": "cd"}, "vqgan: host 0 has None, host 2 has cd")):  # fmt: skip
        found = processes.run(check_same, 3, [base, base, base | other])
        assert [str(error) for error in found] == [said] * 3
