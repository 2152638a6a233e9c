import signal
import threading

import pytest

from metarun.errors import Interrupted
from metarun.signals import SIGNALS, StopSignals


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_at_once(number):
    with pytest.raises(Interrupted, match="stopped"), StopSignals():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_while_waiting_the_first_is_noted_and_the_second_raises(number):
    with StopSignals() as stop:
        stop.wait = True
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        with pytest.raises(Interrupted):
            signal.raise_signal(number)


def test_after_waiting_a_signal_raises_again():
    with StopSignals() as stop:
        stop.wait = True
        stop.wait = False
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_the_handlers_are_put_back():
    before = handlers()
    with StopSignals():
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(Interrupted), StopSignals():
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_an_interruption_is_no_ordinary_exception():
    """So that no `except Exception` of a library takes it for its own."""
    assert not issubclass(Interrupted, Exception)


def test_in_another_thread_signals_are_left_alone():
    before, seen = handlers(), []

    def work():
        with StopSignals() as stop:
            seen.append((handlers(), stop()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
