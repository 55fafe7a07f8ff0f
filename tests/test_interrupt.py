"""A signal asks a run to stop; several hosts stop after the same step."""

import os
import signal
from types import SimpleNamespace

import pytest

from itit.interrupt import Interrupt

pytestmark = pytest.mark.usefixtures("kept_signals")
ALONE = SimpleNamespace(hosts=SimpleNamespace(count=1, any=lambda value: value))


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_stops_and_the_second_ends_the_process(number, code):
    interrupt = Interrupt()
    assert not interrupt.stops(ALONE, 7, 10)
    os.kill(os.getpid(), number)
    assert interrupt.stops(ALONE, 7, 10) and interrupt.exit_code() == code
    assert signal.getsignal(number) is signal.SIG_DFL


def test_hosts_agree_where_metrics_are_due():
    asked = []
    hosts = SimpleNamespace(count=2, any=lambda value: asked.append(value) or True)
    several = SimpleNamespace(hosts=hosts)
    interrupt = Interrupt()
    assert not interrupt.stops(several, 7, 10) and asked == []
    assert interrupt.stops(several, 10, 10) and asked == [False]
    assert interrupt.exit_code() == 143  # the other host's
