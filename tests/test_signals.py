import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from metarun.errors import Interrupted
from metarun.signals import OF_THE_SYSTEM, SIGNALS, StopSignals, ends_with_launcher


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_at_once(number):
    with pytest.raises(Interrupted, match="stopped"), StopSignals():
        signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


@pytest.fixture
def heard():
    """What a launcher that listens to SIGUSR2, as submitit does, has heard."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR2, before)


def test_a_launcher_hears_its_signal_once_the_run_has_left(heard):
    with StopSignals() as stop:
        stop.wait = True
        signal.raise_signal(signal.SIGUSR2)
        assert stop()
        assert not heard
    assert heard == [signal.SIGUSR2]


def test_a_launchers_signal_stops_at_once_what_needs_no_saving(heard):
    with pytest.raises(Interrupted), StopSignals():
        signal.raise_signal(signal.SIGUSR2)
    assert heard == [signal.SIGUSR2]


def test_a_launchers_signal_after_another_is_no_second_request(heard):
    """SLURM may send both, SIGTERM first."""
    with StopSignals() as stop:
        stop.wait = True
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR2)
        assert stop()
    assert heard == [signal.SIGUSR2]


def test_what_a_launcher_raises_comes_out():
    """submitit's listener leaves the process."""

    def leave(number, frame):
        raise SystemExit(255)

    before = signal.signal(signal.SIGUSR2, leave)
    try:
        with pytest.raises(SystemExit), StopSignals():
            signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is leave
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_without_a_listener_is_left_alone():
    with StopSignals():
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.parametrize("number", OF_THE_SYSTEM)
def test_what_the_system_sends_again_is_no_second_request(number):
    """A shell tells of a closed terminal too, and a limit of CPU time is told every second."""
    with StopSignals() as stop:
        stop.wait = True
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)

    def twice() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # while what is there is put away
            put_away.append(number)

    put_away: list[int] = []
    with pytest.raises(Interrupted), StopSignals():
        twice()
    assert put_away == [number]


@pytest.mark.parametrize("number", OF_THE_SYSTEM)
def test_what_is_ignored_stays_ignored(number):
    """As by nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(number)
            assert not stop()
            assert signal.getsignal(number) is signal.SIG_IGN
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


class Freed:
    """Something to be freed."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_vanishes_in_a_callback_is_heeded(number):
    """What a weak reference's callback raises is printed, and forgotten."""
    with StopSignals() as stop:
        stop.heed()
        freed = Freed()
        watched = weakref.ref(freed, lambda _: signal.raise_signal(number))
        del freed
        assert watched() is None
        assert stop()
        with pytest.raises(Interrupted, match="stopped"):
            stop.heed()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_vanishes_between_two_runs_of_a_sweep_stops_the_next():
    before = handlers()
    with StopSignals():
        with StopSignals():
            pass
        freed = Freed()
        watched = weakref.ref(freed, lambda _: signal.raise_signal(signal.SIGTERM))
        del freed
        assert watched() is None
        with pytest.raises(Interrupted, match="stopped"), StopSignals():
            pytest.fail("the next run has begun")
    assert handlers() == before


def in_launchers_block():
    with ends_with_launcher():
        pass


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_process_of_somebody_elses_ends_as_it_would(method):
    """The parent of a fork server's is the server."""
    process = multiprocessing.get_context(method).Process(target=in_launchers_block)
    process.start()
    process.join(60)
    assert process.exitcode == 0


CLOSED = """
import os, signal, sys, time
from metarun.errors import Interrupted
from metarun.signals import StopSignals
from metarun.tracking.console import plain
try:
    with StopSignals():
        print("ready", flush=True)
        time.sleep(60)
except Interrupted:
    plain("said to nobody")
    print("so is this", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("saved")
"""


def test_a_terminal_that_is_closed(tmp_path):
    """The process hears of it, and what it prints then is no error."""
    ours, theirs = pty.openpty()
    own_terminal = "import fcntl, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", own_terminal + CLOSED, str(tmp_path / "end")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 0
    assert (tmp_path / "end").read_text() == "saved"
