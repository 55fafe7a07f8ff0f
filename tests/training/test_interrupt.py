"""A signal asks a run to stop; several hosts stop after the same step."""

import os
import signal
from types import SimpleNamespace

import pytest

from itit.backends.local import Local
from itit.program import Eager
from itit.training.interrupt import Interrupt, Interrupted

pytestmark = pytest.mark.usefixtures("kept_signals")
ALONE = SimpleNamespace(hosts=SimpleNamespace(count=1, any=lambda value: value))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_stops_and_the_second_ends_the_process(number, code):
    interrupt = Interrupt()
    assert not interrupt.stops(ALONE, 7, 10) and interrupt.ended(False, 7, "x") == 0
    os.kill(os.getpid(), number)
    assert interrupt.stops(ALONE, 7, 10) and interrupt.ended(True, 7, "x") == code
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_lost_connection_is_a_signal_however_often_it_is_told():
    interrupt = Interrupt()
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGHUP)
    assert interrupt.stops(ALONE, 7, 10) and interrupt.ended(True, 7, "x") == 129


def test_what_ignores_hangups_goes_on_to():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt = Interrupt()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not interrupt.stops(ALONE, 7, 10)


def test_generation_ends_between_two_of_its_parts():
    interrupt, backend, called = Interrupt(), Local("cpu"), []
    backend.stop_by(interrupt)
    assert backend.sampler.unroll == Eager.unroll and backend.sampler.number(3) == 3
    assert backend.sampler(lambda x: called.append(x) or 2 * x, 4) == 8
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        backend.sampler(called.append, 5)
    assert called == [4]
    backend.run(called.append, 6)  # a step goes on to its end
    assert called == [4, 6]


def test_hosts_agree_where_metrics_are_due():
    asked = []
    hosts = SimpleNamespace(count=2, agrees_at_once=False, any=lambda value: asked.append(value) or True)
    several = SimpleNamespace(hosts=hosts)
    interrupt = Interrupt()
    assert not interrupt.stops(several, 7, 10) and asked == []
    assert interrupt.stops(several, 10, 10) and asked == [False]
    assert interrupt.ended(True, 7, "x") == 143  # the other host's
