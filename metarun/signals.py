"""Leaving when asked to: Ctrl-C, SIGTERM, a closed terminal, a limit of CPU time, and the signals
of a job's launcher."""

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process, parent_process
from types import FrameType

from metarun.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
# Left alone where they are ignored, as by nohup; and sent again and again for one reason, so that
# the next is no second request.
OF_THE_SYSTEM = (signal.SIGHUP, signal.SIGXCPU)
SECONDS = 1.0  # between two looks at whether the process that launched this one is there
LAUNCHERS = (signal.SIGUSR1, signal.SIGUSR2)  # taken where someone listens to them already


class StopSignals:
    """Within this block the signals to stop raise Interrupted; at once, or when it suits.

    While `wait` is true, which is when a training step must not be cut in two, a signal only
    makes calling this object return True. A second one raises all the same.

    What is raised while a library calls back, as when it frees something, is lost. So the request
    is kept: `heed()`, at the end of each stage of a run, raises it again. So does a block within
    this one, as it begins: each run of a sweep is one.

    A launcher such as submitit's listens to a signal by which SLURM tells that a job's time is
    nearly up; it then puts the job back in the queue and leaves at once. Such a signal stops the
    run too, and the launcher gets it on leaving the block, when the run has been saved.
    """

    def __init__(self) -> None:
        self.wait = False
        self._asked = False
        self._told: set[int] = set()
        self._for_launcher: signal.Signals | None = None

    def __call__(self) -> bool:
        return self._asked

    def heed(self) -> None:
        """Raise Interrupted if a signal has asked to stop."""
        if self._asked:
            raise Interrupted("stopped")

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            around = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
            if isinstance(around, StopSignals):
                around.heed()
            taken = [s for s in SIGNALS if s not in OF_THE_SYSTEM or not is_ignored(s)]
            taken += [s for s in LAUNCHERS if callable(signal.getsignal(s))]
            self._before = {s: signal.signal(s, self._handle) for s in taken}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._for_launcher:
            handler = self._before[self._for_launcher]
            assert callable(handler)
            handler(self._for_launcher, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, known = not self._asked, number in self._told
        self._asked = True
        self._told.add(number)
        if number in LAUNCHERS:  # it often comes right after SIGTERM, and is no second request
            first, self._for_launcher = True, signal.Signals(number)
        if number == signal.SIGHUP:
            leave_dead_terminal()
        if number in OF_THE_SYSTEM:
            if known:
                return
            first = True
        if not (self.wait and first):
            raise Interrupted("stopped")


@contextmanager
def ends_with_launcher() -> Iterator[None]:
    """Within this block a process that joblib has started for jobs is asked to stop (SIGTERM) when
    the one that joblib is in is gone, and ends with the block: there may be more jobs for it, and
    nobody to hear of them. In any other process this does nothing: what started it need not be
    what it works for, as where a fork server did."""
    launcher = parent_process()
    if launcher is None or "loky" not in type(current_process()).__module__:
        yield
        return
    left = threading.Event()

    def is_gone() -> bool:
        return os.getppid() != launcher.pid

    def watch() -> None:
        while not left.wait(SECONDS):
            if is_gone():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def leave_if_alone() -> None:
        if is_gone():
            os._exit(130)

    leave_if_alone()
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        left.set()
        leave_if_alone()


def is_ignored(number: signal.Signals) -> bool:
    """Whether the process was started so that the signal does nothing, or has no handler of
    Python's to put back."""
    return signal.getsignal(number) in (signal.SIG_IGN, None)


def leave_dead_terminal() -> None:
    """Write nowhere from now on, if the terminal is closed: what is printed there is an error."""
    for number in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(number).st_mode) and not os.isatty(number):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
